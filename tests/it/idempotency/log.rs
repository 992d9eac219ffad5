//! The log of keys, and how one is forgotten: rule 9.

use chrono::TimeDelta;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::messaging::{HoldUp, PHONE, SEND, SLOW, TEMPLATES, template_to, text_to};

/// Keys that have to be escaped in a path.
const ODD: [&str; 6] = [
    "a/b",
    "%",
    "%2F",
    "q?x=1#y",
    "+",
    "~!@$^&*()[]{}|\\;:'\",<>",
];

fn path(app: &App, endpoint: &str, key: &str) -> String {
    let key = utf8_percent_encode(key, NON_ALPHANUMERIC);
    let store_id = app.store_id;
    format!("/api/v1/idempotency-keys/{endpoint}/{key}?store_id={store_id}")
}

fn list(app: &App, more: &str) -> String {
    format!("/api/v1/idempotency-keys?store_id={}{more}", app.store_id)
}

#[tokio::test]
async fn the_log_tells_of_each_key_and_never_what_was_sent_or_answered() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let refused = text_to(PHONE, "canary").to_string();
    app.keyed(SEND, "k", refused.as_str()).await.expect(422);
    let body = template_to(PHONE, template, &json!({})).to_string();
    let sent = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
    for _ in 0..2 {
        app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
    }
    app.keyed(TEMPLATES, "k", format!("{body} "))
        .await
        .expect(409);
    let page = app.read(&list(&app, "")).await.expect(200);
    let entries = page.json()["data"].clone();
    let entry = |at: usize, endpoint: &str, replays: i64, status: i64, message_id: &Value| {
        let found = &entries[at];
        let (first_seen, expires) = (&found["first_seen_at"], &found["expires_at"]);
        let kept = App::time(expires) - App::time(first_seen);
        assert_eq!(kept, TimeDelta::hours(24));
        json!({
            "endpoint": endpoint, "key": "k", "first_seen_at": first_seen, "expires_at": expires,
            "replays": replays, "status": status, "message_id": message_id,
        })
    };
    let expected = json!([
        entry(0, "send", 0, 422, &Value::Null),
        entry(1, "templates", 2, 201, &sent.json()["message_id"]),
    ]);
    assert_eq!(page.json(), json!({"data": expected, "next_cursor": null}));
    for (endpoint, entry) in [("send", &expected[0]), ("templates", &expected[1])] {
        let one = app.read(&path(&app, endpoint, "k")).await.expect(200);
        assert_eq!(&one.json(), entry);
        assert!(!one.text.contains("canary") && !one.text.contains("33612345678"));
    }
    assert!(!page.text.contains("canary") && !page.text.contains("33612345678"));
    app.stop().await;
}

#[tokio::test]
async fn the_log_is_read_page_by_page_in_order() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    let keys: Vec<String> = (0..7).map(|n| format!("k-{n}")).collect();
    for key in &keys {
        app.keyed(TEMPLATES, key, body.as_str()).await.expect(201);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.read(&list(&app, &format!("&limit=3{cursor}"))).await;
        let page = page.expect(200).json();
        let data = page["data"].as_array().expect("a list").clone();
        assert!((1..=3).contains(&data.len()));
        seen.extend(data.iter().map(|entry| entry["key"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(json!(seen), json!(keys));
    let other = format!("/api/v1/messages?store_id={}{cursor}", app.store_id);
    assert_eq!(app.read(&other).await.expect(400).code(), "cursor_invalid");
    for refused in ["&limit=0", "&limit=201", "&limit=x", "&nonsense=1"] {
        app.read(&list(&app, refused)).await.expect(400);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_key_of_any_characters_is_found_and_forgotten_by_its_escaped_path() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    for (sent, key) in (1..).step_by(2).zip(ODD) {
        app.keyed(TEMPLATES, key, body.as_str()).await.expect(201);
        assert_eq!(app.count("messages").await, sent);
        let path = path(&app, "templates", key);
        assert_eq!(app.read(&path).await.expect(200).json()["key"], key);
        assert_eq!(app.remove(&path).await.expect(204).text, "");
        app.read(&path).await.expect(404);
        app.keyed(TEMPLATES, key, body.as_str()).await.expect(201);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_forgotten_key_sends_again_and_may_come_with_another_body() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let first = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    app.remove(&path(&app, "send", "k")).await.expect(204);
    let second = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    assert_eq!(second.headers.get("idempotent-replayed"), None);
    assert_ne!(second.json()["message_id"], first.json()["message_id"]);
    app.message(&first.json()["message_id"]).await;
    app.remove(&path(&app, "send", "k")).await.expect(204);
    let other = text_to(PHONE, "Other").to_string();
    app.keyed(SEND, "k", other).await.expect(201);
    assert_eq!(app.count("messages").await, 3);
    app.stop().await;
}

#[tokio::test]
async fn a_key_that_is_not_there_can_be_neither_read_nor_forgotten() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    app.keyed(SEND, "k", body.as_str()).await.expect(201);
    app.clock.advance(TimeDelta::hours(24));
    let long = "k".repeat(256);
    for (endpoint, key) in [
        ("send", "unknown"),
        ("templates", "k"),
        ("orders", "k"),
        ("send", "a b"),
        ("send", "é"),
        ("send", long.as_str()),
        // Its time is over.
        ("send", "k"),
    ] {
        let path = path(&app, endpoint, key);
        assert_eq!(app.read(&path).await.expect(404).code(), "not_found");
        assert_eq!(app.remove(&path).await.expect(404).code(), "not_found");
    }
    let broken = format!("/api/v1/idempotency-keys/send/%?store_id={}", app.store_id);
    assert_eq!(app.read(&broken).await.expect(400).code(), "path_invalid");
    // Asking for it left nothing behind: it can be used as a new one.
    app.hear_from(PHONE, "Hello").await;
    let unknown = app.keyed(SEND, "unknown", body).await.expect(201);
    assert_eq!(unknown.headers.get("idempotent-replayed"), None);
    app.stop().await;
}

#[tokio::test]
async fn another_store_sees_and_forgets_none_of_it() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    app.keyed(SEND, "k", body).await.expect(201);
    let (store_id, _) = app.another_store(None).await;
    let one = format!("/api/v1/idempotency-keys/send/k?store_id={store_id}");
    app.read(&one).await.expect(404);
    app.remove(&one).await.expect(404);
    let all = format!("/api/v1/idempotency-keys?store_id={store_id}");
    let empty = json!({"data": [], "next_cursor": null});
    assert_eq!(app.read(&all).await.expect(200).json(), empty);
    app.read(&path(&app, "send", "k")).await.expect(200);
    // With two stores one has to be named.
    let unnamed = app.read("/api/v1/idempotency-keys/send/k").await;
    assert_eq!(unnamed.expect(422).faulty(), ["store_id"]);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_use_is_not_forgotten_by_this_process_or_another_one() {
    let app = App::start().await;
    let other = app.another().await;
    app.hear_from(PHONE, "Hello").await;
    let hold_up = HoldUp::start(&app).await;
    let body = text_to(PHONE, SLOW).to_string();
    let (path, list) = (path(&app, "send", "k"), list(&app, ""));
    let forget = async {
        hold_up.holds_one().await;
        for service in [&app, &other] {
            let refused = service.remove(&path).await.expect(409);
            assert_eq!(refused.code(), "idempotency_key_in_use");
            assert_eq!(refused.header("retry-after"), "1");
            // Nor does the log tell of what has no answer yet.
            service.read(&path).await.expect(404);
            assert_eq!(service.read(&list).await.json()["data"], json!([]));
        }
        hold_up.end().await;
    };
    let (first, ()) = tokio::join!(app.keyed(SEND, "k", body.as_str()), forget);
    let first = first.expect(201);
    for service in [&other, &app] {
        let again = service.keyed(SEND, "k", body.as_str()).await.expect(201);
        assert_eq!(again.text, first.text);
    }
    other.remove(&path).await.expect(204);
    let second = app.keyed(SEND, "k", body).await.expect(201);
    assert_ne!(second.json()["message_id"], first.json()["message_id"]);
    other.stop().await;
    app.stop().await;
}
