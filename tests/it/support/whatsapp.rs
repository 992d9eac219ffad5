//! Stores whose channel is WhatsApp, over the fake of its API.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use keyfold::clock::Clock;
use keyfold::config::{Config, Secret, SecretKey};
use keyfold::edge::Limits;
use keyfold::messaging::channels::{self, NewChannel, ProviderName};
use keyfold::tenancy::{self, NewStore};
use keyfold::{outbox, secrets, state};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::app::{Answer, App};
use super::meta::{Behaviour, Call, Meta};
use super::process::keyfold;
use super::scale::eventually;
use super::webhooks::{self, APP_SECRET, From, VERIFY_TOKEN};

/// `KEYFOLD_SECRET_KEY`: 32 bytes of 7.
pub const SECRET_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
/// The access token of every channel: to be found nowhere.
pub const TOKEN: &str = "EAAGcanaryTokenOfTheTests";
/// A number that nobody answers.
pub const ADA: &str = "+33612345678";

/// The settings that a service over the fake needs.
pub fn configure(config: &mut Config, meta: &Meta) {
    config.secret_key = SecretKey::parse(SECRET_KEY);
    config.whatsapp_base_url = meta.base_url();
    config.whatsapp_app_secret = Some(Secret::new(APP_SECRET));
    config.whatsapp_verify_token = Some(Secret::new(VERIFY_TOKEN));
}

/// The same for a process of its own.
pub fn settings(meta: &Meta) -> [(&'static str, String); 4] {
    [
        ("KEYFOLD_SECRET_KEY", SECRET_KEY.to_owned()),
        ("KEYFOLD_WHATSAPP_BASE_URL", meta.base_url()),
        ("KEYFOLD_WHATSAPP_APP_SECRET", APP_SECRET.to_owned()),
        ("KEYFOLD_WHATSAPP_VERIFY_TOKEN", VERIFY_TOKEN.to_owned()),
    ]
}

/// A service whose store sends through the fake.
pub async fn start(meta: &Meta) -> App {
    let app = start_in_sandbox(meta).await;
    connect(&app.pool, &app.clock, app.store_id).await;
    app
}

/// A service that could use the fake, and whose store is still in the sandbox.
pub async fn start_in_sandbox(meta: &Meta) -> App {
    App::start_with(|config| configure(config, meta), Limits::default()).await
}

/// The number that a store sends from.
pub fn number_of(store_id: i64) -> String {
    format!("1000{store_id}")
}

/// Sets a store's channel.
pub async fn connect(pool: &PgPool, clock: &Clock, store_id: i64) {
    let key = SecretKey::parse(SECRET_KEY);
    let place = channels::token_place(store_id);
    let sealed = secrets::seal(key.as_ref(), &place, TOKEN).expect("there is a key");
    let number = number_of(store_id);
    let new = NewChannel {
        store_id,
        provider: ProviderName::Whatsapp,
        phone_number_id: Some(&number),
        waba_id: Some("2000"),
        access_token: Some(&sealed),
    };
    let database = state::connect_lazily((*pool.connect_options()).clone(), 1);
    let mut connection = database.acquire().await.expect("a connection");
    let set = channels::set(&mut connection, &new, clock.now()).await;
    set.expect("the channel is set");
}

/// One more store of the app's team, with a channel of its own.
pub async fn another_store(app: &App) -> i64 {
    let new = NewStore {
        team_id: app.team_id,
        name: "Another",
        external_id: None,
        default_country: None,
    };
    let store = tenancy::create_store(&app.pool, new, app.clock.now()).await;
    let store_id = store.expect("a store").id;
    connect(&app.pool, &app.clock, store_id).await;
    store_id
}

/// Has people write to a store, so that it may answer them for a day.
pub async fn hear_from(app: &App, store_id: i64, people: &[&str]) {
    let (number, now) = (number_of(store_id), app.clock.now().timestamp());
    let values: Vec<Value> = people
        .iter()
        .map(|phone| {
            let id = format!("wamid.in.{phone}.{now}");
            From::phone(phone).writes(&number, &id, "Hello", now)
        })
        .collect();
    webhooks::tell(app, &values).await;
}

/// The body of a text to somebody.
pub fn text(store_id: i64, to: &str, body: &str) -> Value {
    json!({ "store_id": store_id, "to": to, "type": "text", "text": { "body": body } })
}

/// POST of a free-form message.
pub async fn post_message(app: &App, body: &Value) -> Answer {
    app.send(Method::POST, "/api/v1/messages/send", &[], body.to_string())
        .await
}

/// Sends somebody a text; gives the message's id.
pub async fn send_text(app: &App, store_id: i64, to: &str) -> Uuid {
    let answer = post_message(app, &text(store_id, to, "Hello")).await;
    message_id(&answer.expect(201))
}

/// Of an accepted send.
pub fn message_id(answer: &Answer) -> Uuid {
    let id = answer.json()["message_id"].as_str().map(str::parse);
    id.expect("a message id").expect("a UUID")
}

/// A message as the API tells it.
pub async fn message(app: &App, store_id: i64, id: Uuid) -> Value {
    let path = format!("/api/v1/messages/{id}?store_id={store_id}");
    let answer = app.send(Method::GET, &path, &[], "").await;
    answer.expect(200).json()
}

/// Waits until a message is something; gives it.
pub async fn until(app: &App, store_id: i64, id: Uuid, status: &str) -> Value {
    eventually(&format!("{id} is {status}"), || async {
        let message = message(app, store_id, id).await;
        (message["status"] == status).then_some(message)
    })
    .await
}

/// What a message went through, without the times: its status, its error's code, and the status
/// and code of each step.
pub fn course(message: &Value) -> Value {
    let steps: Vec<Value> = message["timeline"]
        .as_array()
        .expect("a timeline")
        .iter()
        .map(|step| match step["code"].as_str() {
            Some(code) => json!([step["status"], code]),
            None => step["status"].clone(),
        })
        .collect();
    json!({ "status": message["status"], "code": message["error"]["code"], "timeline": steps })
}

/// What is left of a message in the outbox: its state, how often it was tried, and why it is still
/// there.
pub async fn left(app: &App, id: Uuid) -> Option<(String, i32, Option<String>)> {
    sqlx::query_as("select state, attempt, error_code from outbox where id = $1")
        .bind(id)
        .fetch_optional(&app.pool)
        .await
        .expect("the outbox can be read")
}

/// Waits until a message waits in the outbox for this reason, and nobody works on it.
pub async fn until_put_back(app: &App, id: Uuid, code: &str) {
    eventually(&format!("{id} is put back because of {code}"), || async {
        let found: Option<(String, bool)> = sqlx::query_as(
            "select error_code, lease_until is null
            from outbox
            where id = $1 and state = 'waiting' and error_code is not null",
        )
        .bind(id)
        .fetch_optional(&app.pool)
        .await
        .expect("the outbox can be read");
        (found == Some((code.to_owned(), true))).then_some(())
    })
    .await;
}

/// Moves the clock and waits until the worker has swept twice since: whatever was due in these
/// stores has been leased and handed to its handler, and whoever came of that was found by the
/// second sweep.
pub async fn pass(app: &App, stores: &[i64], time: TimeDelta) {
    app.clock.advance(time);
    for _ in 0..2 {
        // Work of the same stores that nobody hints at, and that is done as soon as it is found:
        // one statement leases it with everything else of the store that is due.
        let mut probes = Vec::new();
        let mut connection = app.state.pool.acquire().await.expect("a connection");
        for store_id in stores {
            let (probe, now) = (app.clock.new_id(), app.clock.now());
            outbox::append(&mut connection, *store_id, "inbound", &[probe], now)
                .await
                .expect("the probe is stored");
            probes.push(probe);
        }
        drop(connection);
        eventually("a sweep", || async {
            let left: i64 = sqlx::query_scalar("select count(*) from outbox where id = any($1)")
                .bind(&probes)
                .fetch_one(&app.pool)
                .await
                .expect("the outbox can be read");
            (left == 0).then_some(())
        })
        .await;
    }
}

/// Four days pass, with sweeps: some before a message that waits is given up, some after it.
pub async fn pass_days(app: &App, stores: &[i64]) {
    for hours in [1, 11, 24, 60] {
        pass(app, stores, TimeDelta::hours(hours)).await;
    }
}

/// Runs a command of `keyfold` over the app's database and the fake, with this on its standard input.
pub async fn command(app: &App, meta: &Meta, arguments: &[&str], input: &str) -> Output {
    let mut command = keyfold();
    command
        .args(arguments)
        .env("DATABASE_URL", &app.database_url)
        .envs(settings(meta))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let input = input.to_owned();
    // The fake needs this thread meanwhile.
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that wants no input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    });
    ended.await.expect("no panic")
}

/// `keyfold template sync` over the fake; gives what it prints.
pub async fn sync_templates(app: &App, meta: &Meta, store_id: i64) -> Value {
    let store = store_id.to_string();
    let arguments = ["template", "sync", "--json", "--store", &store];
    let output = command(app, meta, &arguments, "").await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

/// Behaviours by the number that a call is for; numbers that are not there have a good day.
#[derive(Clone, Default)]
pub struct Days(Arc<Mutex<HashMap<String, Behaviour>>>);

impl Days {
    /// Rules over the fake from now on.
    pub fn of(meta: &Meta) -> Self {
        let days = Self::default();
        let known = days.clone();
        meta.behave(move |call| {
            let known = known.0.lock().expect("no panic");
            let day = known.get(&call.phone_number_id()).cloned();
            day.unwrap_or_else(Behaviour::accept)
        });
        days
    }

    /// A store's day from now on.
    pub fn set(&self, store_id: i64, behaviour: Behaviour) {
        let mut known = self.0.lock().expect("no panic");
        known.insert(number_of(store_id), behaviour);
    }
}

/// The calls for a store's number.
pub fn calls_of(meta: &Meta, store_id: i64) -> Vec<Call> {
    let number = number_of(store_id);
    let mut calls = meta.calls();
    calls.retain(|call| call.phone_number_id() == number);
    calls
}

/// Pauses a channel as it is set now.
pub async fn pause(
    pool: &PgPool,
    store_id: i64,
    until: DateTime<Utc>,
    code: &str,
) -> sqlx::Result<()> {
    let set_at: DateTime<Utc> =
        sqlx::query_scalar("select updated_at from channels where store_id = $1")
            .bind(store_id)
            .fetch_one(pool)
            .await?;
    channels::pause(pool, store_id, set_at, until, code).await
}
