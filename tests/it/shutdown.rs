//! SIGTERM: what is under way ends well, and everybody is told.

use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::io::AsyncWriteExt as _;

use crate::support::database;
use crate::support::load::{Target, order, target};
use crate::support::process::Process;
use crate::support::raw::{self, chunk};
use crate::support::scale::eventually;

async fn start() -> (Process, String, Target) {
    let url = database::fresh().await;
    let server = Process::serve(&url);
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let target = target(&server.base, &pool).await;
    (server, url, target)
}

/// Waits until the process ended by itself, and well.
async fn ends_well(server: Process) {
    let server = std::sync::Mutex::new(server);
    let status = eventually("the process ends", || async {
        server.lock().expect("no panic").ended()
    })
    .await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_is_finished_and_readiness_ends_first() {
    let (server, url, target) = start().await;
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    let mut lock = connection.begin().await.expect("a transaction");
    sqlx::query("lock table orders in share mode")
        .execute(&mut *lock)
        .await
        .expect("a lock");
    let writing = tokio::spawn({
        let target = target.clone();
        async move { target.push("orders", &order("last", 1, 1)).await }
    });
    eventually("the write waits for the lock", || async {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_locks where not granted and relation = 'orders'::regclass)",
        )
        .fetch_one(&mut PgConnection::connect(&url).await.expect("a connection"))
        .await
        .expect("pg_locks");
        waits.then_some(())
    })
    .await;

    server.ask_to_end();
    eventually(
        "readiness ends while connections are still taken",
        || async {
            let asked = target.client.get(format!("{}/readyz", target.base)).send();
            (asked.await.expect("it still listens").status() == 503).then_some(())
        },
    )
    .await;
    lock.rollback().await.expect("the lock goes");
    writing.await.expect("no panic").expect(201);
    ends_well(server).await;
}

/// A stream that was begun, with its first line answered.
async fn stream_begun(target: &Target) -> tokio::net::TcpStream {
    let mut stream = raw::send(target, &raw::stream_head(target, "orders/bulk")).await;
    let line = format!("{}\n", order("first", 1, 1));
    stream
        .write_all(&chunk(line.as_bytes()))
        .await
        .expect("it is taken");
    raw::read_until(&mut stream, r#""outcome":"created""#).await;
    stream
}

const LAST_LINE: &str = r#""complete":false"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_goes_on_is_ended_with_a_last_line() {
    let (server, _, target) = start().await;
    let stream = stream_begun(&target).await;
    let (reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        for n in 0.. {
            let line = format!("{}\n", order("first", 1, n));
            if writer.write_all(&chunk(line.as_bytes())).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    server.ask_to_end();
    let answer = read_to_end(reader).await;
    assert!(
        answer.contains(LAST_LINE),
        "it ended with {}",
        end_of(&answer)
    );
    assert!(
        answer.contains(r#""code":"overloaded""#),
        "{}",
        end_of(&answer)
    );
    sending.await.expect("no panic");
    ends_well(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_waits_for_its_client_is_ended_with_a_last_line_too() {
    let (server, _, target) = start().await;
    let mut stream = stream_begun(&target).await;
    server.ask_to_end();
    let answer = raw::read_until(&mut stream, LAST_LINE).await;
    assert!(answer.contains(r#""created":1"#), "{answer}");
    drop(stream);
    ends_well(server).await;
}

/// Everything until the end, or until a reset: a client that still sends may see one after it.
async fn read_to_end(mut reader: tokio::net::tcp::OwnedReadHalf) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        bytes.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn end_of(text: &str) -> &str {
    &text[text.len().saturating_sub(300)..]
}
