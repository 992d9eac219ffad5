//! The whole service in this process, on a real socket, over a database of its own.

use std::str::FromStr as _;

use http::{HeaderMap, Method, StatusCode};
use keyfold::clock::Clock;
use keyfold::config::Config;
use keyfold::edge::Limits;
use keyfold::state::{self, State};
use keyfold::tenancy::{self, NewKey, NewStore};
use keyfold::{app, auth};
use serde_json::Value;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::database;

/// A running service with a team, a store and a key.
pub struct App {
    /// `http://127.0.0.1:…`
    pub base: String,
    /// The store of most requests.
    pub store_id: i64,
    /// Its team.
    pub team_id: i64,
    /// A key that may use every store of the team.
    pub key: String,
    /// For looking at what is stored.
    pub pool: PgPool,
    /// For starting another process on the same data.
    pub database_url: String,
    /// The service's clock; tests move it.
    pub clock: Clock,
    /// The service's state.
    pub state: State,
    /// One client for all requests.
    pub client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    service: Option<JoinHandle<Result<(), keyfold::error::Error>>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON; null when there is none.
    pub fn json(&self) -> Value {
        if self.text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// A header as text, empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("visible text"))
    }

    /// `Keyfold-Outcome`.
    pub fn outcome(&self) -> &str {
        self.header("keyfold-outcome")
    }

    /// Of a problem: its code.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Of a problem: the paths of faulty fields.
    pub fn faulty(&self) -> Vec<String> {
        let body = self.json();
        let errors = body["errors"].as_object();
        errors
            .map(|errors| errors.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Fails the test unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }
}

impl App {
    /// A service with the default settings.
    pub async fn start() -> Self {
        Self::start_with(|_| {}, Limits::default()).await
    }

    /// A service with other settings or limits.
    pub async fn start_with(change: impl FnOnce(&mut Config), limits: Limits) -> Self {
        let database_url = database::fresh().await;
        Self::start_on(database_url, change, limits).await
    }

    /// A service over a database that is there already.
    pub async fn start_on(
        database_url: String,
        change: impl FnOnce(&mut Config),
        limits: Limits,
    ) -> Self {
        let mut config = Config {
            database_url: Some(database_url.clone()),
            ..Config::default()
        };
        change(&mut config);
        let options = PgConnectOptions::from_str(&database_url).expect("a valid address");
        let clock = Clock::system();
        let pool = state::connect_lazily(options.clone(), config.other_connections());
        let state = State::new(pool, config, clock.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel::<()>();
        let service = tokio::spawn(app::serve(listener, state.clone(), limits, async {
            let _ = stopped.await;
        }));
        let pool = PgPool::connect_lazy_with(options);
        let (team_id, store_id, key) = tenant(&pool, &clock, "Test").await;
        Self {
            base,
            store_id,
            team_id,
            key,
            pool,
            database_url,
            clock,
            state,
            client: client(),
            stop: Some(stop),
            service: Some(service),
        }
    }

    /// Stops the service and fails the test if it did not end well.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let service = self.service.take().expect("stopped once");
        service
            .await
            .expect("no task died")
            .expect("the service ended well");
    }

    /// `/api/v1/stores/{store_id}/{rest}`
    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/stores/{}/{rest}", self.store_id)
    }

    /// POST of JSON to a path under the store.
    pub async fn post(&self, rest: &str, body: &Value) -> Answer {
        self.send(Method::POST, &self.path(rest), &[], body.to_string())
            .await
    }

    /// PATCH of JSON.
    pub async fn patch(&self, rest: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, &self.path(rest), &[], body.to_string())
            .await
    }

    /// GET.
    pub async fn get(&self, rest: &str) -> Answer {
        self.send(Method::GET, &self.path(rest), &[], String::new())
            .await
    }

    /// DELETE.
    pub async fn delete(&self, rest: &str) -> Answer {
        self.send(Method::DELETE, &self.path(rest), &[], String::new())
            .await
    }

    /// Any request with the key. `Content-Type` is JSON where there is a body and no other is given.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        let body = body.into();
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        let given = |name: &str| {
            headers
                .iter()
                .any(|(given, _)| given.eq_ignore_ascii_case(name))
        };
        if !given("authorization") {
            request = request.bearer_auth(&self.key);
        }
        if !body.is_empty() && !given("content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        answer(
            request
                .body(body)
                .send()
                .await
                .expect("the service answers"),
        )
        .await
    }

    /// How many rows a table holds.
    pub async fn count(&self, table: &str) -> i64 {
        let statement = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        sqlx::query_scalar(statement)
            .fetch_one(&self.pool)
            .await
            .expect("the table is there")
    }

    /// All events of the store, read page by page through the feed.
    pub async fn events(&self) -> Vec<Value> {
        let (mut events, mut after) = (Vec::new(), 0);
        loop {
            let page = self
                .get(&format!("events?after={after}&limit=200"))
                .await
                .expect(200)
                .json();
            events.extend(page["data"].as_array().expect("a list").iter().cloned());
            after = page["next_after"].as_i64().expect("never null");
            if page["has_more"] == false {
                return events;
            }
        }
    }
}

/// Reads an answer to its end.
pub async fn answer(response: reqwest::Response) -> Answer {
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("the body arrives");
    Answer {
        status,
        headers,
        text,
    }
}

/// A client that opens as many connections as it likes and asks no proxy.
pub fn client() -> reqwest::Client {
    // The service names its own; this client takes the process's, though it speaks no TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("no TLS is needed")
}

/// A new team with a store and a key for all its stores.
pub async fn tenant(pool: &PgPool, clock: &Clock, name: &str) -> (i64, i64, String) {
    let now = clock.now();
    let team = tenancy::create_team(pool, name, now).await.expect("a team");
    let new = NewStore {
        team_id: team.id,
        name,
        external_id: None,
        default_country: None,
    };
    let store = tenancy::create_store(pool, new, now)
        .await
        .expect("a store");
    let key = key(pool, clock, team.id, None).await.1;
    (team.id, store.id, key)
}

/// A new key; gives its id and itself.
pub async fn key(
    pool: &PgPool,
    clock: &Clock,
    team_id: i64,
    store_id: Option<i64>,
) -> (uuid::Uuid, String) {
    let key = auth::new_key();
    let id = clock.new_id();
    let sha256 = auth::digest(&key);
    let new = NewKey {
        id,
        team_id,
        store_id,
        name: "test",
        sha256: &sha256,
        hint: "",
    };
    let made = tenancy::create_key(pool, new, clock.now())
        .await
        .expect("a key");
    assert!(made, "the store is one of the team");
    (id, key)
}
