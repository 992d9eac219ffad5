//! The edge through real sockets on the loopback, with short limits.
//!
//! No test waits for less than a deadline or fails for being slow: what must end has `PATIENCE`.

mod bodies;
mod connections;
mod observed;
mod requests;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Limits, Pot, serve, wrap};
use crate::clock::Clock;

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A deadline that is met in a test.
const SHORT: Duration = Duration::from_millis(150);

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(router: Router, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        let router = wrap(router, Clock::system(), Pot::of_bytes(1 << 20));
        let task = tokio::spawn(serve(listener, router, limits, shutdown.clone()));
        Self {
            address,
            shutdown,
            task,
        }
    }

    async fn connect(&self) -> Client {
        Client(
            TcpStream::connect(self.address)
                .await
                .expect("a connection"),
        )
    }

    /// One request on a connection of its own.
    async fn send(&self, head: &str, body: &[u8]) -> Answer {
        let mut client = self.connect().await;
        client
            .write(format!("{head}\r\nHost: x\r\n\r\n").as_bytes())
            .await;
        client.write(body).await;
        client.answer().await
    }

    /// A POST with its length.
    async fn post(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1{headers}\r\nContent-Length: {length}");
        self.send(&head, body).await
    }
}

struct Client(TcpStream);

impl Client {
    async fn write(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.0.write_all(bytes))
            .await
            .expect("in time")
            .expect("written");
    }

    /// Reads one answer that has a `Content-Length`.
    async fn answer(&mut self) -> Answer {
        timeout(PATIENCE, self.read_answer())
            .await
            .expect("an answer in time")
    }

    async fn read_answer(&mut self) -> Answer {
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            let read = self.0.read_buf(&mut bytes).await.expect("an answer");
            assert!(
                read > 0,
                "closed after {:?}",
                String::from_utf8_lossy(&bytes)
            );
        };
        let head = String::from_utf8(bytes[..head_end].to_vec()).expect("ASCII");
        let mut answer = Answer {
            head,
            body: bytes.split_off(head_end),
        };
        let length: usize = answer
            .header("content-length")
            .map_or(0, |n| n.parse().expect("n"));
        while answer.body.len() < length {
            let read = self.0.read_buf(&mut answer.body).await.expect("the body");
            assert!(read > 0, "closed within the body");
        }
        answer
    }

    /// Waits until the server closes, however it does.
    async fn closed(&mut self) {
        let mut rest = [0; 4096];
        let to_the_end = async { while matches!(self.0.read(&mut rest).await, Ok(1..)) {} };
        timeout(PATIENCE, to_the_end).await.expect("closed in time");
    }
}

struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head[9..12].parse().expect("a status")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The whole problem, after a look at what all problems share.
    fn problem(&self) -> serde_json::Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(problem["status"], self.status());
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
        problem
    }

    fn code(&self) -> String {
        self.problem()["code"].as_str().expect("a code").to_owned()
    }
}
