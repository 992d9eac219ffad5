//! A backlog is worked off beside everything else.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use super::answer_or_none;
use crate::support::app::client;
use crate::support::database;
use crate::support::load::{Target, order, target};
use crate::support::process::{Process, keyfold};
use crate::support::scale::number;

const SENDERS: usize = 24;
/// Memory of a worker, whatever waits.
const MOST_MIB: usize = 150;

/// `keyfold work`; killed when dropped.
struct Worker(Child);

impl Worker {
    fn start(database_url: &str) -> Self {
        let mut command = keyfold();
        command.arg("work").env("DATABASE_URL", database_url);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the binary starts"))
    }

    fn most_memory_mib(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let text = text.expect("it runs, on Linux");
        let line = text.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        let kib: usize = kib.and_then(|kib| kib.parse().ok()).expect("KiB");
        kib / 1_024
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_worked_off_by_a_worker_alone_while_writes_and_lists_go_on() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let messages = number("KEYFOLD_TEST_BACKLOG").unwrap_or(1_500);
    let server = Process::serve_alone(&url);
    let target = target(&server.base, &pool).await;
    let filled = fill(&target, messages).await;
    println!("{messages} accepted, {:.0}/s", rate(messages, filled));
    assert_eq!(count(&pool, "outbox", "true").await, messages);
    let idle = latencies(&target, 0, async || false).await;

    let worker = Worker::start(&url);
    let began = Instant::now();
    let busy = latencies(&target, 1_000_000, async || {
        count(&pool, "outbox", "true").await > 0
    })
    .await;
    let took = began.elapsed();
    let memory = worker.most_memory_mib();
    println!(
        "drained: {:.0}/s, {memory} MiB at most",
        rate(messages, took)
    );
    println!("write and list, p50 and p99: idle {idle:?}, meanwhile {busy:?}");
    assert_eq!(
        count(&pool, "messages", "status = 'delivered'").await,
        messages
    );
    let statuses = "jsonb_array_length(timeline) = 3 and version = 2";
    assert_eq!(count(&pool, "messages", statuses).await, messages);
    assert!(memory < MOST_MIB, "{memory} MiB");
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

async fn count(pool: &PgPool, table: &str, condition: &str) -> usize {
    let statement = format!("select count(*) from {table} where {condition}");
    let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .fetch_one(pool)
        .await
        .expect("the table can be read");
    usize::try_from(count).expect("not negative")
}

/// Sends so many template messages; tells how long it took.
async fn fill(target: &Target, messages: usize) -> Duration {
    let template = json!({ "name": "n", "language": "en", "body": "Hello {{name}}" });
    let made = target
        .push("message-templates", &template)
        .await
        .expect(201);
    let id = made.json()["id"].clone();
    let (began, client) = (Instant::now(), client());
    let senders = (0..SENDERS).map(async |sender| {
        for n in (sender..messages).step_by(SENDERS) {
            let body = json!({
                "store_id": target.store_id, "template_id": id,
                "phone_number": format!("+336{:08}", n % 20_000), "variables": { "name": "Ada" }
            });
            let sent = client
                .post(format!("{}/api/v1/templates", target.base))
                .bearer_auth(&target.key)
                .header("content-type", "application/json")
                .header("idempotency-key", format!("message-{n}"))
                .body(body.to_string())
                .send()
                .await;
            let answer = answer_or_none(sent.expect("the service answers")).await;
            assert_eq!(answer.expect("whole").0, 201);
        }
    });
    join_all(senders).await;
    began.elapsed()
}

/// Writes an order and reads a list, again and again, at least 100 times; gives (p50, p99) of both
/// in milliseconds.
async fn latencies(
    target: &Target,
    first: u64,
    mut goes_on: impl AsyncFnMut() -> bool,
) -> [(u128, u128); 2] {
    let (mut writes, mut lists, mut n) = (Vec::new(), Vec::new(), first);
    while n < first + 100 || goes_on().await {
        n += 1;
        let began = Instant::now();
        let order = order(&format!("o-{n}"), 1, n);
        target.push("orders", &order).await.expect(201);
        writes.push(began.elapsed().as_millis());
        let began = Instant::now();
        let path = format!(
            "{}/api/v1/messages?limit=20&store_id={}",
            target.base, target.store_id
        );
        let read = target
            .client
            .get(path)
            .bearer_auth(&target.key)
            .send()
            .await;
        assert_eq!(read.expect("it answers").status(), 200);
        lists.push(began.elapsed().as_millis());
    }
    [writes, lists].map(|mut times| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    })
}
