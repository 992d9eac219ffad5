//! Sends over the API, what the shopper writes, and a way to hold a send up.

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use keyfold::edge::Limits;
use keyfold::tenancy::{self, NewStore};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};

use super::app::{self, Answer, App};
use super::scale::eventually;

/// Where free-form messages are sent.
pub const SEND: &str = "/api/v1/messages/send";
/// Where templates are sent.
pub const TEMPLATES: &str = "/api/v1/templates";
/// The shopper of most tests.
pub const PHONE: &str = "+33612345678";

/// A free-form text.
pub fn text_to(phone: &str, text: &str) -> Value {
    json!({ "to": phone, "type": "text", "text": { "body": text } })
}

/// A template without variables, or with these.
pub fn template_to(phone: &str, template_id: i64, variables: &Value) -> Value {
    json!({ "template_id": template_id, "phone_number": phone, "variables": variables })
}

impl App {
    /// The shopper writes to the store, which opens the service window.
    pub async fn hear_from(&self, phone: &str, text: &str) {
        let said = json!({ "from": phone, "text": text });
        self.post("sandbox/inbound", &said).await.expect(204);
    }

    /// A POST of these bytes to a path, without a key.
    pub async fn deliver(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send(Method::POST, path, &[], body).await
    }

    /// A POST of these bytes to a path with a key.
    pub async fn keyed(&self, path: &str, key: &str, body: impl Into<Vec<u8>>) -> Answer {
        let headers = [("idempotency-key", key)];
        self.send(Method::POST, path, &headers, body).await
    }

    /// The same until the key is no longer in use.
    pub async fn keyed_until_answered(&self, path: &str, key: &str, body: &str) -> Answer {
        eventually("the key is answered", || async {
            let answer = self.keyed(path, key, body).await;
            let waits = answer.status == 409 && answer.code() == "idempotency_key_in_use";
            (!waits).then_some(answer)
        })
        .await
    }

    /// A POST whose `Idempotency-Key` headers are these, whatever they are.
    pub async fn with_keys(&self, path: &str, keys: &[&[u8]], body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        for key in keys {
            let value = HeaderValue::from_bytes(key).expect("can stand in a header");
            headers.append(HeaderName::from_static("idempotency-key"), value);
        }
        let request = self.client.post(format!("{}{path}", self.base));
        let request = request.bearer_auth(&self.key).headers(headers);
        let request = request.header("content-type", "application/json");
        let sent = request.body(body.to_owned()).send().await;
        app::answer(sent.expect("the service answers")).await
    }

    /// A GET of any path.
    pub async fn read(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// A DELETE of any path.
    pub async fn remove(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// Makes a template of this body; gives its id.
    pub async fn template(&self, name: &str, body: &str) -> i64 {
        let template = json!({ "name": name, "language": "en", "body": body });
        let made = self.post("message-templates", &template).await.expect(201);
        made.json()["id"].as_i64().expect("an integer")
    }

    /// A message as it is now.
    pub async fn message(&self, id: &Value) -> Value {
        let id = id.as_str().expect("an id");
        let path = format!("/api/v1/messages/{id}?store_id={}", self.store_id);
        self.read(&path).await.expect(200).json()
    }

    /// Waits until a message has a status.
    pub async fn message_becomes(&self, id: &Value, status: &str) -> Value {
        eventually(&format!("the message is {status}"), || async {
            let message = self.message(id).await;
            (message["status"] == status).then_some(message)
        })
        .await
    }

    /// Another service on the same database, asked as the same tenant.
    pub async fn another(&self) -> App {
        let url = self.database_url.clone();
        let mut other = App::start_on(url, |_| {}, Limits::default()).await;
        other.store_id = self.store_id;
        other.team_id = self.team_id;
        other.key.clone_from(&self.key);
        other
    }

    /// One more store of the team, and a key for it alone.
    pub async fn another_store(&self, default_country: Option<&str>) -> (i64, String) {
        let new = NewStore {
            team_id: self.team_id,
            name: "Second",
            external_id: None,
            default_country,
        };
        let store = tenancy::create_store(&self.pool, new, self.clock.now())
            .await
            .expect("a store");
        let key = app::key(&self.pool, &self.clock, self.team_id, Some(store.id)).await;
        (store.id, key.1)
    }

    /// Every key that is stored, with its answer.
    pub async fn stored_keys(&self) -> Vec<String> {
        sqlx::query_scalar("select k::text from idempotency_keys k order by k.id")
            .fetch_all(&self.pool)
            .await
            .expect("the keys can be read")
    }

    /// A time in an answer.
    pub fn time(value: &Value) -> DateTime<Utc> {
        let text = value.as_str().expect("a time");
        text.parse().expect("RFC 3339")
    }
}

/// Holds up sends of the text `slow` inside their transaction, after their key was claimed.
pub struct HoldUp {
    lock: PgConnection,
    pool: PgPool,
}

/// The text of sends that are held up.
pub const SLOW: &str = "slow";

impl HoldUp {
    /// From now on.
    pub async fn start(app: &App) -> Self {
        // Asked for again and again, since waiting for a lock would end by `lock_timeout`.
        app.pool
            .execute(
                "create function hold_up() returns trigger language plpgsql as $$
                begin
                    while not pg_try_advisory_xact_lock_shared(4711) loop
                        perform pg_sleep(0.01);
                    end loop;
                    return new;
                end $$;
                create trigger hold_up before insert on messages
                for each row when (new.content ->> 'body' = 'slow') execute function hold_up();",
            )
            .await
            .expect("a trigger");
        let mut lock = PgConnection::connect_with(&app.pool.connect_options())
            .await
            .expect("a connection");
        lock.execute("select pg_advisory_lock(4711)")
            .await
            .expect("a lock");
        Self {
            lock,
            pool: app.pool.clone(),
        }
    }

    /// Waits until a send is held up.
    pub async fn holds_one(&self) {
        eventually("a send is held up", || async {
            let held: bool = sqlx::query_scalar(
                "select exists (
                    select from pg_stat_activity
                    where datname = current_database() and wait_event = 'PgSleep'
                )",
            )
            .fetch_one(&self.pool)
            .await
            .expect("pg_stat_activity");
            held.then_some(())
        })
        .await;
    }

    /// Lets all go on.
    pub async fn end(self) {
        self.lock.close().await.expect("the connection closes");
    }
}
