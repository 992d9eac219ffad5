//! Deadlines, the cap and the shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Limits, PATIENCE, SHORT, Server};

const GET: &[u8] = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n";

fn ok() -> Router {
    Router::new().route("/ok", get(async || "ok"))
}

#[tokio::test]
async fn a_half_sent_header_is_closed() {
    let limits = Limits {
        header_timeout: SHORT,
        ..Limits::default()
    };
    let server = Server::start(ok(), limits).await;
    let mut client = server.connect().await;
    client.write(b"GET /ok HTTP/1.1\r\nHos").await;
    client.closed().await;
    // Also on a connection that was used before, where the time begins with the first byte.
    let mut client = server.connect().await;
    client.write(GET).await;
    assert_eq!(client.answer().await.status(), 200);
    tokio::time::sleep(2 * SHORT).await;
    client.write(b"GET /ok HTTP/1.1\r\nHos").await;
    client.closed().await;
}

#[tokio::test]
async fn a_connection_without_a_byte_is_closed() {
    let limits = Limits {
        header_timeout: SHORT,
        ..Limits::default()
    };
    let server = Server::start(ok(), limits).await;
    server.connect().await.closed().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_later_than_a_half_sent_header() {
    let limits = Limits {
        header_timeout: SHORT,
        keep_alive_timeout: 4 * SHORT,
        ..Limits::default()
    };
    let server = Server::start(ok(), limits).await;
    let mut client = server.connect().await;
    for _ in 0..2 {
        client.write(GET).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    let begun = Instant::now();
    client.closed().await;
    assert!(
        begun.elapsed() >= 3 * SHORT,
        "closed after {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_slow_handler_is_no_idle_connection() {
    let limits = Limits {
        header_timeout: SHORT,
        keep_alive_timeout: SHORT,
        ..Limits::default()
    };
    let slow = Router::new().route("/ok", get(async || tokio::time::sleep(4 * SHORT).await));
    let server = Server::start(slow, limits).await;
    let mut client = server.connect().await;
    client.write(GET).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let chunk = Bytes::from(vec![0; 64 * 1024]);
    let dropped = Arc::new(Notify::new());
    let guard = NotifyOnDrop(Arc::clone(&dropped));
    let guard = Arc::new(std::sync::Mutex::new(Some(guard)));
    let endless = Router::new().route(
        "/ok",
        get(async move || {
            let guard = guard.lock().expect("not poisoned").take();
            Body::from_stream(stream::repeat_with(move || {
                let _held = &guard;
                Ok::<_, std::io::Error>(chunk.clone())
            }))
        }),
    );
    let limits = Limits {
        write_stall_timeout: SHORT,
        ..Limits::default()
    };
    let server = Server::start(endless, limits).await;
    let mut client = server.connect().await;
    client.write(GET).await;
    timeout(PATIENCE, dropped.notified())
        .await
        .expect("cut in time");
    client.closed().await;
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_one_to_end() {
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let busy = ok().route(
        "/busy",
        get({
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            async move || {
                begun.notify_one();
                go_on.notified().await;
            }
        }),
    );
    let server = Server::start(busy, limits).await;
    let mut first = server.connect().await;
    first.write(b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n").await;
    begun.notified().await;
    let mut second = server.connect().await;
    second.write(GET).await;
    let mut byte = [0];
    assert!(
        timeout(2 * SHORT, second.0.read(&mut byte)).await.is_err(),
        "answered over the cap"
    );
    go_on.notify_one();
    assert_eq!(first.answer().await.status(), 200);
    assert_eq!(second.answer().await.status(), 200);
}

#[tokio::test]
async fn a_connection_that_rests_goes_for_a_new_one_and_without_a_key_first() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let server = Server::start(ok(), limits).await;
    let (mut with_key, mut without) = (server.connect().await, server.connect().await);
    with_key
        .write(b"GET /ok HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n")
        .await;
    assert_eq!(with_key.answer().await.status(), 200);
    without.write(GET).await;
    assert_eq!(without.answer().await.status(), 200);
    for _ in 0..2 {
        let mut new = server.connect().await;
        new.write(GET).await;
        assert_eq!(new.answer().await.status(), 200);
    }
    without.closed().await;
    with_key.write(GET).await;
    assert_eq!(with_key.answer().await.status(), 200, "it is still there");
}

#[tokio::test]
async fn an_address_has_its_share_of_the_connections() {
    let limits = Limits {
        max_of_address: 2,
        ..Limits::default()
    };
    let server = Server::start(ok(), limits).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = server.connect().await;
        client.write(GET).await;
        assert_eq!(client.answer().await.status(), 200);
        clients.push(client);
    }
    for mut first in clients.drain(..3) {
        first.closed().await;
    }
    for mut last in clients {
        last.write(GET).await;
        assert_eq!(last.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_shutdown_finishes_what_runs_and_closes_what_idles() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let routes = ok().route(
        "/slow",
        get({
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            async move || {
                begun.notify_one();
                go_on.notified().await;
                "done"
            }
        }),
    );
    let server = Server::start(routes, Limits::default()).await;
    let (mut idle, mut busy) = (server.connect().await, server.connect().await);
    let mut resting = server.connect().await;
    idle.write(GET).await;
    assert_eq!(idle.answer().await.status(), 200);
    busy.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    begun.notified().await;
    server.shutdown.cancel();
    // What is already on its way is answered: on a connection that rests, and on a new one.
    let mut late = server.connect().await;
    for connection in [&mut idle, &mut late] {
        connection.write(GET).await;
        let answer = connection.answer().await;
        assert_eq!(
            (answer.status(), answer.header("connection")),
            (200, Some("close"))
        );
        connection.closed().await;
    }
    resting.closed().await;
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "still listening"
    );
    assert!(!server.task.is_finished());
    go_on.notify_one();
    let answer = busy.answer().await;
    assert_eq!(
        (answer.text(), answer.header("connection")),
        ("done", Some("close"))
    );
    timeout(PATIENCE, server.task)
        .await
        .expect("ends in time")
        .expect("no panic");
}

#[tokio::test]
async fn a_shutdown_has_a_hard_limit() {
    let begun = Arc::new(Notify::new());
    let routes = Router::new().route(
        "/ok",
        get({
            let begun = Arc::clone(&begun);
            async move || {
                begun.notify_one();
                std::future::pending::<()>().await;
            }
        }),
    );
    let limits = Limits {
        shutdown_grace: SHORT,
        ..Limits::default()
    };
    let server = Server::start(routes, limits).await;
    let mut stuck = server.connect().await;
    stuck.write(GET).await;
    begun.notified().await;
    server.shutdown.cancel();
    timeout(PATIENCE, server.task)
        .await
        .expect("ends in time")
        .expect("no panic");
    timeout(Duration::from_secs(5), stuck.closed())
        .await
        .expect("cut");
}

#[test]
fn the_file_limit_is_raised_to_the_hard_one() {
    let raised = crate::edge::raise_file_limit().expect("allowed");
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    assert_eq!(limit.expect("known"), (raised, raised));
}
