//! What clients hold on to: open streams, documents that are still arriving, pages that nobody reads.
//! Others are served meanwhile, and memory stays bounded.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::database;
use crate::support::load::{Target, order, target};
use crate::support::meta::Meta;
use crate::support::process::Process;
use crate::support::raw::{self, chunk};
use crate::support::webhooks::{self, APP_SECRET, From, SIGNATURE, event, signature};
use crate::support::whatsapp::{ADA, start as start_with_channel};

/// Most memory of the server.
const MOST_KIB: usize = 150 * 1024;
const MIB: usize = 1024 * 1024;

/// A server, the store that holds on, and a neighbour.
async fn start() -> (Process, Target, Target) {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let server = Process::serve(&url);
    let holding = target(&server.base, &pool).await;
    let neighbour = target(&server.base, &pool).await;
    (server, holding, neighbour)
}

fn stays_small(server: &Process) {
    let (most, _) = server.memory_kib();
    assert!(most < MOST_KIB, "{most} KiB");
}

/// A stream with its first line answered, and nothing after it.
async fn idle_stream(target: &Target, n: usize) -> TcpStream {
    let mut stream = raw::send(target, &raw::stream_head(target, "orders/bulk")).await;
    let line = format!("{}\n", order(&format!("stream-{n}"), n, 1));
    stream
        .write_all(&chunk(line.as_bytes()))
        .await
        .expect("it is taken");
    raw::read_until(&mut stream, r#""outcome":"created""#).await;
    stream
}

/// A document of which the last part never comes.
async fn arriving(target: &Target, bytes: usize) -> TcpStream {
    let whole = raw::post(target, "orders/bulk", &"x".repeat(bytes));
    let (sent, _kept) = whole.split_at(whole.len() - 1000);
    let mut stream = raw::connect(target).await;
    // One that is refused is not read to its end.
    let _ = stream.write_all(sent).await;
    stream
}

/// Writes of all kinds are answered well.
async fn is_served(target: &Target, name: &str) {
    for n in 0..5 {
        let body = order(&format!("{name}-{n}"), n, 1);
        target.push("orders", &body).await.expect(201);
    }
    let items = json!({ "items": [order(&format!("{name}-bulk"), 1, 1)] });
    let answer = target.push("orders/bulk", &items).await.expect(200).json();
    assert_eq!(answer["summary"]["created"], 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_and_arriving_documents_keep_nobody_out() {
    let (server, holding, neighbour) = start().await;
    let mut held = Vec::new();
    for n in 0..8 {
        held.push(idle_stream(&holding, n).await);
    }
    let mut ninth = raw::send(&holding, &raw::stream_head(&holding, "orders/bulk")).await;
    let refused = raw::read_until(&mut ninth, "overloaded").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    held.push(idle_stream(&neighbour, 0).await);
    for name in ["beside-streams", "beside-streams-again"] {
        is_served(&holding, name).await;
        is_served(&neighbour, name).await;
    }
    for _ in 0..4 {
        held.push(arriving(&holding, 15 * MIB).await);
    }
    is_served(&neighbour, "beside-documents").await;
    for n in 0..5 {
        let body = order(&format!("own-{n}"), n, 1);
        holding.push("orders", &body).await.expect(201);
    }
    stays_small(&server);
    // A stream that comes to its end makes room for another one.
    drop(held);
    crate::support::scale::eventually("streams are taken again", || async {
        let mut stream = raw::send(&holding, &raw::stream_head(&holding, "orders/bulk")).await;
        stream
            .write_all(raw::LAST_CHUNK)
            .await
            .expect("it is taken");
        let answer = raw::read_until(&mut stream, "\r\n\r\n").await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

/// A store with so many orders that a page of 200 is of more than 8 MiB.
async fn fill(target: &Target) -> BTreeSet<String> {
    let large = "x".repeat(50_000);
    let mut keys = BTreeSet::new();
    for slice in 0..20 {
        let items: Vec<Value> = (0..10)
            .map(|n| {
                let key = format!("large-{slice}-{n}");
                let mut item = order(&key, n, 1);
                item["metadata"] = json!({ "text": large });
                keys.insert(key);
                item
            })
            .collect();
        let answer = target.push("orders/bulk", &json!({ "items": items })).await;
        answer.expect(200);
    }
    keys
}

/// A request whose answer is never read.
async fn unread(target: &Target, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("small");
    let address = target.base.trim_start_matches("http://");
    let mut stream = socket
        .connect(address.parse().expect("an address"))
        .await
        .expect("it listens");
    let Target { store_id, key, .. } = target;
    let head = format!(
        "GET /api/v1/stores/{store_id}/{path} HTTP/1.1\r\nhost: keyfold\r\n\
         authorization: Bearer {key}\r\n\r\n"
    );
    stream
        .write_all(head.as_bytes())
        .await
        .expect("it is taken");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_nobody_reads_take_no_memory_from_others() {
    let (server, holding, neighbour) = start().await;
    let keys = fill(&holding).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(unread(&holding, "orders?limit=200").await);
    }
    is_served(&neighbour, "beside-pages").await;
    let list = |target: Target, rest: String| async move {
        let url = format!("{}/api/v1/stores/{}/{rest}", target.base, target.store_id);
        let request = target.client.get(url).bearer_auth(&target.key);
        let answer = request.send().await.expect("it answers");
        assert_eq!(answer.status(), 200, "{rest}");
        answer.json::<Value>().await.expect("JSON")
    };
    let page = list(neighbour.clone(), "orders?limit=200".to_owned()).await;
    assert_eq!(page["data"].as_array().map(Vec::len), Some(6));
    // Of the one that holds on, pages are shorter, and none of its orders is missing or comes twice.
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(holding.clone(), format!("orders?limit=200{cursor}")).await;
        let data = page["data"].as_array().expect("a page");
        assert!(!data.is_empty());
        found.extend(
            data.iter()
                .map(|one| one["external_id"].as_str().expect("text").to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found.len(), keys.len());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), keys);
    stays_small(&server);
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_arrive_keep_the_providers_events_not_out() {
    let app = start_with_channel(&Meta::start().await).await;
    let address = app.base.trim_start_matches("http://").to_owned();
    let tag = signature(APP_SECRET, b"of something else");
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(&address).await.expect("it listens");
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: keyfold\r\ncontent-type: application/json\r\n\
             {SIGNATURE}: {tag}\r\ncontent-length: {}\r\n\r\n",
            webhooks::PATH,
            4 * MIB
        );
        stream
            .write_all(head.as_bytes())
            .await
            .expect("it is taken");
        let _ = stream.write_all(&vec![b'x'; 4 * MIB - 1]).await;
        held.push(stream);
    }
    let writes = From::phone(ADA).writes("1", "wamid.1", "Hello", 1);
    webhooks::post(&app, &event(&[writes])).await.expect(200);
    drop(held);
    app.stop().await;
}
