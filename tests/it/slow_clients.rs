//! Clients that take their time, against a real process: others are served meanwhile, and memory
//! stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyfold::edge;
use serde_json::Value;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::support::database;
use crate::support::load::{Load, Target, order, target};
use crate::support::process::Process;
use crate::support::raw::{self, LAST_CHUNK, chunk};
use crate::support::scale::{DEADLINE, eventually, number, rounds};

/// Most memory of the server, whatever its clients do.
const MOST_KIB: usize = 200 * 1024;
/// A piece of the stream.
const PIECE_BYTES: usize = 64 * 1024;

async fn start() -> (Process, PgPool, Target) {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let server = Process::serve(&url);
    let target = target(&server.base, &pool).await;
    (server, pool, target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_idle_and_half_finished_requests_keep_nobody_else_waiting() {
    edge::raise_file_limit().expect("as many as the system allows");
    let (server, pool, target) = start().await;
    let mut held = Vec::new();
    for n in 0..rounds(300) {
        let whole = raw::post(&target, "orders", &order("never", 1, 1).to_string());
        // Nothing, half a head, half a body, a stream without a line.
        let sent = match n % 4 {
            0 => Vec::new(),
            1 => whole[..40].to_vec(),
            2 => whole[..whole.len() - 20].to_vec(),
            _ => raw::stream_head(&target, "orders/bulk"),
        };
        held.push(raw::send(&target, &sent).await);
    }
    let load = Load::start(&target, 4);
    load.proceed(100).await;
    let told = load.stop_and_check(&pool, target.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    let (most, _) = server.memory_kib();
    println!(
        "{} held connections, {told:?}, at most {most} KiB",
        held.len()
    );
    assert!(most < MOST_KIB, "{most} KiB");
    drop(held);
}

/// A piece of a stream: whole lines, some of them orders, the others wrong in many ways, so that the
/// answer is about as long as the request.
fn piece(n: usize) -> Vec<u8> {
    let unknown: Vec<String> = (0..60).map(|member| format!("\"m{member}\":0")).collect();
    let wrong = format!(
        r#"{{{},"text":"{}"}}"#,
        unknown.join(","),
        "x".repeat(1_500)
    );
    let mut text = Vec::with_capacity(PIECE_BYTES + 4096);
    let mut line = 0;
    while text.len() < PIECE_BYTES {
        let good = || order(&format!("s-{}", (n * 5 + line) % 5_000), n % 100, 1).to_string();
        let item = if line % 5 == 0 { good() } else { wrong.clone() };
        text.extend_from_slice(item.as_bytes());
        text.push(b'\n');
        line += 1;
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_answer_is_read_slowly_is_held_back_and_takes_no_memory() {
    let (server, pool, target) = start().await;
    let bytes = number("KEYFOLD_TEST_STREAM_BYTES").unwrap_or(16 * 1024 * 1024);
    let pieces = bytes.div_ceil(PIECE_BYTES);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(256 * 1024).expect("small");
    let address = target.base.trim_start_matches("http://");
    let stream = socket
        .connect(address.parse().expect("an address"))
        .await
        .expect("it listens");
    let (mut reader, mut writer) = stream.into_split();
    let sent = Arc::new(AtomicUsize::new(0));
    let (counter, head) = (Arc::clone(&sent), raw::stream_head(&target, "orders/bulk"));
    let sender = tokio::spawn(async move {
        writer.write_all(&head).await.expect("it is taken");
        let ready: Vec<Vec<u8>> = (0..pieces.min(50)).map(|n| chunk(&piece(n))).collect();
        for n in 0..pieces {
            writer
                .write_all(&ready[n % ready.len()])
                .await
                .expect("it is taken");
            counter.fetch_add(1, Ordering::Relaxed);
        }
        writer.write_all(LAST_CHUNK).await.expect("it is taken");
        writer
    });

    // As long as nobody reads, the sender comes to a halt, and everybody else is served.
    let load = Load::start(&target, 2);
    let seen = AtomicUsize::new(usize::MAX);
    eventually("the sender is held back", || async {
        load.proceed(10).await;
        let now = sent.load(Ordering::Relaxed);
        (seen.swap(now, Ordering::Relaxed) == now && now > 0).then_some(())
    })
    .await;
    let held_at = sent.load(Ordering::Relaxed);
    assert!(
        held_at < pieces,
        "{bytes} bytes were taken while nobody read"
    );

    // Reading little by little, with memory watched, until the last line.
    let mut tail = Vec::new();
    let (mut read_bytes, mut buffer) = (0, vec![0; 64 * 1024]);
    while !tail.ends_with(b"0\r\n\r\n") {
        let read = tokio::time::timeout(DEADLINE, reader.read(&mut buffer)).await;
        let read = read.expect("it goes on").expect("it is open");
        assert!(read > 0, "cut after {read_bytes} bytes");
        if read_bytes / 1_000_000 != (read_bytes + read) / 1_000_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        read_bytes += read;
        tail.extend_from_slice(&buffer[..read]);
        tail.drain(..tail.len().saturating_sub(1_000));
    }
    drop(sender.await.expect("all was sent"));
    let told = load.stop_and_check(&pool, target.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    let (most, now) = server.memory_kib();
    println!(
        "{bytes} bytes sent (held at piece {held_at} of {pieces}), {read_bytes} read, others: \
         {told:?}, at most {most} KiB, now {now} KiB"
    );
    let text = String::from_utf8_lossy(&tail);
    let last = text
        .lines()
        .rfind(|line| line.contains("summary"))
        .expect("a last line");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last["complete"], true, "{last}");
    assert!(most < MOST_KIB, "{most} KiB");
}
