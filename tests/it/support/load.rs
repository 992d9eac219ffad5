//! Writers that never rest, and what they were told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use super::app::{self, Answer, App};

/// Where and as whom to write.
#[derive(Clone)]
pub struct Target {
    pub base: String,
    pub store_id: i64,
    pub key: String,
    pub client: reqwest::Client,
}

impl Target {
    /// The store of an app.
    pub fn of(app: &App) -> Self {
        Self {
            base: app.base.clone(),
            store_id: app.store_id,
            key: app.key.clone(),
            client: app.client.clone(),
        }
    }

    /// Another store of the same service, of another team.
    pub async fn neighbour(app: &App) -> Self {
        let (_, store_id, key) = app::tenant(&app.pool, &app.clock, "Neighbour").await;
        Self {
            store_id,
            key,
            ..Self::of(app)
        }
    }

    /// A POST of JSON under the store; an error when the connection breaks.
    pub async fn post(&self, rest: &str, body: &Value) -> reqwest::Result<Answer> {
        let url = format!("{}/api/v1/stores/{}/{rest}", self.base, self.store_id);
        let request = self.client.post(url).bearer_auth(&self.key).json(body);
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        Ok(Answer {
            status,
            headers,
            text,
        })
    }

    /// A POST that has to be answered.
    pub async fn push(&self, rest: &str, body: &Value) -> Answer {
        self.post(rest, body).await.expect("the service answers")
    }
}

/// A small order that carries a number.
pub fn order(external_id: &str, customer: usize, n: u64) -> Value {
    json!({
        "external_id": external_id,
        "placed_at": "2026-01-31T12:00:00Z",
        "total_price": "12.50",
        "customer": { "phone": format!("+3361234{customer:04}"), "first_name": "Ada" },
        "metadata": { "n": n },
    })
}

/// What was sent and what was answered, by key: numbers grow with each change of a key.
#[derive(Default)]
struct Book {
    sent: BTreeMap<String, u64>,
    acknowledged: BTreeMap<String, u64>,
    /// Answers that are no success: status, code, whether `Retry-After` was there.
    refusals: BTreeMap<(u16, String, bool), u64>,
    created: u64,
    acknowledged_writes: u64,
}

/// Running writers.
pub struct Load {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts writers; each makes new orders and changes one of its own, by turns.
    pub fn start(target: &Target, writers: usize) -> Self {
        Self::start_named(target, writers, "")
    }

    /// The same with keys that have this in them, beside others.
    pub fn start_named(target: &Target, writers: usize, name: &'static str) -> Self {
        let mut load = Self {
            book: Arc::default(),
            stop: Arc::default(),
            writers: Vec::new(),
        };
        for writer in 0..writers {
            let (book, stop) = (Arc::clone(&load.book), Arc::clone(&load.stop));
            let target = target.clone();
            load.writers.push(tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let key = match n % 2 {
                        0 => format!("own-{name}{writer}"),
                        _ => format!("new-{name}{writer}-{n}"),
                    };
                    insist(&target, &book, &stop, &key, writer, n).await;
                }
            }));
        }
        load
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.book
            .lock()
            .expect("no writer died")
            .acknowledged_writes
    }

    /// Waits for so many more acknowledged writes.
    pub async fn proceed(&self, more: u64) {
        let wanted = self.acknowledged() + more;
        super::scale::eventually("writes go on", || async {
            (self.acknowledged() >= wanted).then_some(())
        })
        .await;
    }

    /// Stops the writers; what they were told is not looked at.
    pub async fn stop(self) {
        self.end().await;
    }

    async fn end(self) -> Book {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.expect("no writer died");
        }
        std::mem::take(&mut *self.book.lock().expect("no writer died"))
    }

    /// Stops the writers and compares what they were told with what is stored: nothing that was
    /// acknowledged is missing, nothing is stored that was not sent, and each version has its event.
    pub async fn stop_and_check(self, pool: &PgPool, store_id: i64) -> Told {
        let book = self.end().await;
        let stored: Vec<(String, i64)> = sqlx::query_as(
            "select external_id, (metadata ->> 'n')::bigint from orders where store_id = $1",
        )
        .bind(store_id)
        .fetch_all(pool)
        .await
        .expect("orders");
        let stored: BTreeMap<String, u64> = stored
            .into_iter()
            .map(|(key, n)| (key, u64::try_from(n).expect("a number")))
            .collect();
        for (key, n) in &book.acknowledged {
            let found = stored.get(key);
            assert!(
                found >= Some(n),
                "{key} was acknowledged as {n} and is {found:?}"
            );
            assert!(
                found <= book.sent.get(key),
                "{key} was never sent as {found:?}"
            );
        }
        check_events(pool, store_id).await;
        Told {
            created: book.created,
            refusals: book.refusals,
        }
    }
}

/// What all writers were told.
#[derive(Debug)]
pub struct Told {
    pub created: u64,
    /// Answers that are no success: status, code, whether `Retry-After` was there.
    pub refusals: BTreeMap<(u16, String, bool), u64>,
}

/// Sends one write until it is acknowledged or the end comes.
async fn insist(
    target: &Target,
    book: &Mutex<Book>,
    stop: &AtomicBool,
    key: &str,
    writer: usize,
    n: u64,
) {
    let body = order(key, writer, n);
    book.lock()
        .expect("no writer died")
        .sent
        .insert(key.to_owned(), n);
    while !stop.load(Ordering::Relaxed) {
        if let Ok(answer) = target.post("orders", &body).await {
            let mut book = book.lock().expect("no writer died");
            if answer.status.is_success() {
                book.acknowledged.insert(key.to_owned(), n);
                book.created += u64::from(answer.status == 201);
                book.acknowledged_writes += 1;
                return;
            }
            let retry = !answer.header("retry-after").is_empty();
            let refusal = (answer.status.as_u16(), answer.code(), retry);
            *book.refusals.entry(refusal).or_default() += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Each record has just as many events as versions, numbered from 1.
pub async fn check_events(pool: &PgPool, store_id: i64) {
    for table in ["orders", "customers"] {
        let statement = format!(
            "select count(*)
            from {table} r
            where r.store_id = $1
                and (
                    select coalesce(array_agg(e.version order by e.version), '{{}}')
                    from events e
                    where e.store_id = r.store_id and e.record_id = r.id
                ) <> array(select generate_series(1, r.version))"
        );
        let odd: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
            .bind(store_id)
            .fetch_one(pool)
            .await
            .expect(table);
        assert_eq!(odd, 0, "{table} whose events are not one per version");
    }
    let orphans: i64 = sqlx::query_scalar(
        "select count(*)
        from orders o
        where o.store_id = $1
            and not exists (
                select from customers c where c.store_id = o.store_id and c.id = o.customer_id
            )",
    )
    .bind(store_id)
    .fetch_one(pool)
    .await
    .expect("orders");
    assert_eq!(orphans, 0, "orders without customer");
}

/// Fails the test when a connection of this database stays in a transaction. After 30 s the
/// database itself would end it.
pub async fn nothing_stays_open(pool: &PgPool) {
    let started = Instant::now();
    loop {
        let open: i64 = sqlx::query_scalar(
            "select count(*)
            from pg_stat_activity
            where datname = current_database() and state like 'idle in transaction%'",
        )
        .fetch_one(pool)
        .await
        .expect("pg_stat_activity");
        if open == 0 {
            return;
        }
        let waited = started.elapsed();
        assert!(
            waited < Duration::from_secs(10),
            "{open} connections stay in a transaction"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether anybody on this database waits for a lock.
pub async fn somebody_waits(pool: &PgPool) -> bool {
    sqlx::query_scalar(
        "select exists (
            select from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'
        )",
    )
    .fetch_one(pool)
    .await
    .expect("pg_stat_activity")
}

/// A team, a store and a key on a database, for a service at this address.
pub async fn target(base: &str, pool: &PgPool) -> Target {
    let clock = keyfold::clock::Clock::system();
    let (_, store_id, key) = app::tenant(pool, &clock, "Load").await;
    Target {
        base: base.to_owned(),
        store_id,
        key,
        client: app::client(),
    }
}
