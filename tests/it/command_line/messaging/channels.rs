//! `keyfold channel set` and `show`.

use std::io::Write as _;
use std::process::{Output, Stdio};

use chrono::TimeDelta;
use keyfold::clock::Clock;
use keyfold::config::SecretKey;
use keyfold::messaging::channels::{self, Access};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::super::{failure, json_of, keyfold, run, stdout};
use super::printed;
use crate::support::app::tenant;
use crate::support::database;
use crate::support::meta::{Behaviour, Meta};
use crate::support::whatsapp::{
    ADA, SECRET_KEY, TOKEN, command, hear_from, pause, send_text, start, until, until_put_back,
};

/// A database with two stores.
struct Shop {
    url: String,
    pool: PgPool,
    stores: [i64; 2],
}

impl Shop {
    async fn open() -> Self {
        let url = database::fresh().await;
        let pool = PgPool::connect(&url).await.expect("it is there");
        let clock = Clock::system();
        let first = tenant(&pool, &clock, "First").await.1;
        let second = tenant(&pool, &clock, "Second").await.1;
        Self {
            url,
            pool,
            stores: [first, second],
        }
    }

    /// Runs `keyfold channel set` for a store, with these settings and this standard input.
    fn set(&self, store: i64, more: &[&str], key: Option<&str>, input: &str) -> Output {
        let mut command = keyfold();
        command
            .args(["channel", "set", "--json", "--store", &store.to_string()])
            .args(more)
            .env("DATABASE_URL", &self.url)
            .envs(key.map(|key| ("KEYFOLD_SECRET_KEY", key)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that wants no input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    fn shown(&self, store: i64) -> Value {
        json_of(
            &self.url,
            &["channel", "show", "--store", &store.to_string()],
        )
    }
}

/// What a WhatsApp channel is set with.
const WHATSAPP: &[&str] = &[
    "--provider",
    "whatsapp",
    "--phone-number-id",
    "4711",
    "--waba-id",
    "2000",
    "--access-token-stdin",
];

fn sandbox(store_id: i64) -> Value {
    json!({
        "store_id": store_id, "provider": "sandbox", "phone_number_id": null, "waba_id": null,
        "paused_until": null, "paused_code": null
    })
}

fn whatsapp(store_id: i64) -> Value {
    json!({
        "store_id": store_id, "provider": "whatsapp", "phone_number_id": "4711", "waba_id": "2000",
        "paused_until": null, "paused_code": null
    })
}

#[tokio::test]
async fn a_channel_is_set_shown_without_its_token_and_taken_back() {
    let shop = Shop::open().await;
    let [store, other] = shop.stores;
    assert_eq!(shop.shown(store), sandbox(store));
    let set = shop.set(store, WHATSAPP, Some(SECRET_KEY), &format!("  {TOKEN}\n"));
    assert_eq!(printed(&set), whatsapp(store));
    let said = [set.stdout, set.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains(TOKEN));
    assert_eq!(shop.shown(store), whatsapp(store));
    assert_eq!(shop.shown(other), sandbox(other));
    let key = SecretKey::parse(SECRET_KEY);
    let access = channels::access(&shop.pool, key.as_ref(), store).await;
    let Access::Whatsapp { token, .. } = access.expect("read") else {
        panic!("it was set");
    };
    assert_eq!(token.expect("sealed under this key").expose(), TOKEN);

    let back = shop.set(store, &["--provider", "sandbox"], None, "");
    assert_eq!(printed(&back), sandbox(store));
    let kept: i64 =
        sqlx::query_scalar("select count(*) from channels where access_token is not null")
            .fetch_one(&shop.pool)
            .await
            .expect("counted");
    assert_eq!(kept, 0, "a token that is not needed is not kept");
}

#[tokio::test]
async fn a_channel_for_people_is_readable() {
    let shop = Shop::open().await;
    let store = shop.stores[0];
    printed(&shop.set(store, WHATSAPP, Some(SECRET_KEY), TOKEN));
    let until = Clock::system().now() + TimeDelta::hours(1);
    let paused = pause(&shop.pool, store, until, "190").await;
    paused.expect("paused");
    let output = run(keyfold()
        .args(["channel", "show", "--store", &store.to_string()])
        .env("DATABASE_URL", &shop.url));
    let line = stdout(&output);
    for part in ["whatsapp", "4711", "2000", "paused until", "190"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(line.lines().count(), 1);
}

#[tokio::test]
async fn without_a_key_no_token_is_taken_and_the_setting_is_named() {
    let shop = Shop::open().await;
    let store = shop.stores[0];
    let line = failure(&shop.set(store, WHATSAPP, None, TOKEN));
    assert!(line.contains("KEYFOLD_SECRET_KEY"), "{line}");
    assert!(!line.contains(TOKEN), "{line}");
    assert_eq!(shop.shown(store), sandbox(store));
    let line = failure(&shop.set(store, WHATSAPP, Some("c2hvcnQ="), TOKEN));
    assert!(line.contains("KEYFOLD_SECRET_KEY"), "{line}");
    assert!(!line.contains("c2hvcnQ="), "{line}");
}

#[tokio::test]
async fn a_number_belongs_to_one_store() {
    let shop = Shop::open().await;
    let [store, other] = shop.stores;
    printed(&shop.set(store, WHATSAPP, Some(SECRET_KEY), TOKEN));
    let line = failure(&shop.set(other, WHATSAPP, Some(SECRET_KEY), TOKEN));
    assert!(
        line.contains("another store has this phone number id"),
        "{line}"
    );
    assert_eq!(shop.shown(other), sandbox(other));
    // The store itself may set it again, and give it away.
    printed(&shop.set(store, WHATSAPP, Some(SECRET_KEY), "another-token"));
    printed(&shop.set(store, &["--provider", "sandbox"], None, ""));
    printed(&shop.set(other, WHATSAPP, Some(SECRET_KEY), TOKEN));
    assert_eq!(shop.shown(other), whatsapp(other));
}

#[tokio::test]
async fn what_a_channel_lacks_or_has_too_much_is_said_in_one_line() {
    let shop = Shop::open().await;
    let store = shop.stores[0];
    let with = |more: &[&'static str]| [&["--provider", "whatsapp"], more].concat();
    let ids = ["--phone-number-id", "1", "--waba-id", "2"];
    for (more, input, wanted) in [
        (with(&ids), TOKEN, "--access-token-stdin"),
        (with(&["--access-token-stdin"]), TOKEN, "--phone-number-id"),
        (
            with(&["--phone-number-id", "1", "--access-token-stdin"]),
            TOKEN,
            "--waba-id",
        ),
        (WHATSAPP.to_vec(), "", "standard input"),
        (WHATSAPP.to_vec(), " \n", "standard input"),
        (WHATSAPP.to_vec(), "two words", "standard input"),
        (WHATSAPP.to_vec(), "with-a-nul-\0", "standard input"),
        (
            vec!["--provider", "sandbox", "--access-token-stdin"],
            TOKEN,
            "no access token",
        ),
        (
            vec!["--provider", "sandbox", "--waba-id", "2"],
            "",
            "--waba-id",
        ),
    ] {
        let line = failure(&shop.set(store, &more, Some(SECRET_KEY), input));
        assert!(line.contains(wanted), "{more:?}: {line}");
        assert_eq!(shop.shown(store), sandbox(store), "{more:?}");
    }
    let line = failure(&shop.set(77, WHATSAPP, Some(SECRET_KEY), TOKEN));
    assert!(line.contains("there is no store 77"), "{line}");
    for wrong in [
        &["channel", "set", "--store", "1", "--provider", "telegram"][..],
        &[
            "channel",
            "set",
            "--store",
            "1",
            "--provider",
            "whatsapp",
            "--waba-id",
            "../x",
        ],
        &["channel", "show"],
        &["outbox", "retry", "--store", "1"],
        &["outbox", "retry", "--store", "1", "all"],
        &["outbox", "list", "--state", "lost"],
        &["outbox", "list", "--limit", "0"],
        &["template", "sync"],
    ] {
        let output = run(keyfold().args(wrong).env("DATABASE_URL", &shop.url));
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn setting_a_channel_ends_its_pause_and_lets_go_what_waits() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    meta.behave(|_| Behaviour::error(190, 401));
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until_put_back(&app, id, "190").await;
    meta.behave(|call| match call.token.as_str() {
        "a-new-token" => Behaviour::accept(),
        _ => Behaviour::error(190, 401),
    });
    let store = app.store_id.to_string();
    let arguments = [&["channel", "set", "--json", "--store", &store], WHATSAPP].concat();
    let set = command(&app, &meta, &arguments, "a-new-token").await;
    assert_eq!(printed(&set), whatsapp(app.store_id));
    until(&app, app.store_id, id, "sent").await;
    assert_eq!(meta.calls().len(), 2);
    app.stop().await;
}
