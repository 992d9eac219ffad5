//! Bodies: how they are read, refused, decoded and drained.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;

use super::{Limits, SHORT, Server};
use crate::edge::{Holder, Pot, read_whole, stream};
use crate::error::Error;

const MIB: usize = 1024 * 1024;

/// Routes that answer with the decoded length, and one that reads nothing.
fn routes(limits: &Limits, pot: &Pot) -> Router {
    let (limits, pot) = (Arc::new(limits.clone()), pot.clone());
    Router::new()
        .route(
            "/read",
            post(async move |request: Request| -> Result<Response, Error> {
                let (parts, body) = request.into_parts();
                let held = pot.take(Holder::Nobody, 0)?;
                let within = limits.body_total_timeout;
                let body = read_whole(body, &parts.headers, MIB, held, within).await?;
                Ok(body.len().to_string().into_response())
            }),
        )
        .route(
            "/stream",
            post(async |request: Request| -> Result<Response, Error> {
                let (parts, body) = request.into_parts();
                let mut chunks = stream(body, &parts.headers)?;
                let mut total_bytes = 0;
                while let Some(chunk) = chunks.next().await {
                    let chunk = chunk?;
                    assert!(chunk.len() <= 64 * 1024, "a chunk of {}", chunk.len());
                    total_bytes += chunk.len();
                }
                Ok(total_bytes.to_string().into_response())
            }),
        )
        .route("/refuse", post(async || Error::Unauthorized))
}

async fn server(limits: Limits) -> Server {
    Server::start(routes(&limits, &Pot::of_bytes(64 * MIB)), limits).await
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("in memory");
    encoder.finish().expect("in memory")
}

const GZIP: &str = "\r\nContent-Encoding: GZip";

#[tokio::test]
async fn a_body_at_the_limit_is_read_and_one_byte_more_refused() {
    let server = server(Limits::default()).await;
    for bytes in [0, 1, 16 * 1024, MIB] {
        assert_eq!(
            server.post("/read", "", &vec![b'x'; bytes]).await.text(),
            bytes.to_string()
        );
    }
    let refused = server.post("/read", "", &vec![b'x'; MIB + 1]).await;
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (413, "body_too_large")
    );
    let identity = server
        .post("/read", "\r\nContent-Encoding: identity", b"abc")
        .await;
    assert_eq!(identity.text(), "3");
}

#[tokio::test]
async fn a_chunked_body_is_counted_as_it_comes() {
    let server = server(Limits::default()).await;
    let head = "POST /read HTTP/1.1\r\nTransfer-Encoding: chunked";
    let fits = server.send(head, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
    assert_eq!(fits.text(), "5");
    let mut large = format!("{:x}\r\n", MIB + 1).into_bytes();
    large.extend(vec![b'x'; MIB + 1]);
    large.extend(b"\r\n0\r\n\r\n");
    assert_eq!(server.send(head, &large).await.code(), "body_too_large");
    let broken = server.send(head, b"3\r\nabc\r\nzz\r\n").await;
    assert_eq!(broken.code(), "body_unreadable");
}

#[tokio::test]
async fn gzip_is_decoded_and_limits_count_decoded_bytes() {
    let server = server(Limits::default()).await;
    let mut two_members = gzip(&vec![b'a'; 300_000]);
    two_members.extend(gzip(b"bcd"));
    assert_eq!(
        server.post("/read", GZIP, &two_members).await.text(),
        "300003"
    );
    assert_eq!(
        server.post("/stream", GZIP, &two_members).await.text(),
        "300003"
    );
    assert_eq!(
        server
            .post("/read", GZIP, &gzip(&vec![0; MIB]))
            .await
            .text(),
        MIB.to_string()
    );
    let bomb = gzip(&vec![0; 16 * MIB]);
    assert_eq!(
        server.post("/read", GZIP, &bomb).await.code(),
        "body_too_large"
    );
    assert_eq!(
        server.post("/stream", GZIP, &bomb).await.text(),
        (16 * MIB).to_string()
    );
}

#[tokio::test]
async fn broken_gzip_is_unreadable_and_other_encodings_are_unsupported() {
    let server = server(Limits::default()).await;
    let whole = gzip(b"{\"a\": 1}");
    let mut garbage_after = whole.clone();
    garbage_after.extend(b"garbage");
    let mut wrong_checksum = whole.clone();
    let at = wrong_checksum.len() - 6;
    wrong_checksum[at] ^= 1;
    for broken in [
        &whole[..whole.len() - 3],
        &whole[..5],
        b"{}",
        &garbage_after,
        &wrong_checksum,
    ] {
        for path in ["/read", "/stream"] {
            let answer = server.post(path, GZIP, broken).await;
            assert_eq!(
                (answer.status(), answer.code().as_str()),
                (400, "body_unreadable")
            );
        }
    }
    for other in [
        "deflate",
        "br",
        "gzip, gzip",
        "",
        "gzip\r\nContent-Encoding: gzip",
    ] {
        let answer = server
            .post("/read", &format!("\r\nContent-Encoding: {other}"), b"{}")
            .await;
        assert_eq!(answer.code(), "unsupported_content_encoding", "{other}");
    }
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_a_408() {
    let limits = Limits {
        body_idle_timeout: SHORT,
        ..Limits::default()
    };
    let server = server(limits).await;
    for path in ["/read", "/stream"] {
        for encoding in ["", GZIP] {
            let mut client = server.connect().await;
            let head = format!("POST {path} HTTP/1.1\r\nHost: x{encoding}\r\nContent-Length: 9");
            client.write(format!("{head}\r\n\r\n").as_bytes()).await;
            client.write(&gzip(b"abc")[..4]).await;
            let answer = client.answer().await;
            assert_eq!(
                (answer.status(), answer.code().as_str()),
                (408, "request_timeout")
            );
            assert_eq!(answer.header("connection"), Some("close"));
        }
    }
}

#[tokio::test]
async fn a_slow_body_outlives_the_deadline_of_the_headers() {
    let limits = Limits {
        header_timeout: SHORT,
        keep_alive_timeout: SHORT,
        ..Limits::default()
    };
    let server = server(limits).await;
    let mut client = server.connect().await;
    client
        .write(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        .await;
    for byte in [b"a", b"b", b"c"] {
        tokio::time::sleep(2 * SHORT).await;
        client.write(byte).await;
    }
    assert_eq!(client.answer().await.text(), "3");
}

#[tokio::test]
async fn a_body_that_drips_is_a_408_in_the_end() {
    let limits = Limits {
        body_total_timeout: 3 * SHORT,
        drain_timeout: SHORT,
        ..Limits::default()
    };
    let server = server(limits).await;
    let mut client = server.connect().await;
    client
        .write(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        .await;
    let answer = loop {
        tokio::select! {
            answer = client.answer() => break answer,
            () = tokio::time::sleep(SHORT / 3) => {}
        }
        client.write(b".").await;
    };
    assert_eq!(answer.code(), "request_timeout");
}

#[tokio::test]
async fn an_early_refusal_is_seen_by_a_client_that_sends_first() {
    let server = server(Limits::default()).await;
    let mut client = server.connect().await;
    for _ in 0..2 {
        let head = "POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 921600\r\n\r\n";
        client.write(head.as_bytes()).await;
        client.write(&vec![b'x'; 921_600]).await;
        let answer = client.answer().await;
        // Drained, so the connection goes on.
        assert_eq!((answer.status(), answer.header("connection")), (401, None));
    }
}

#[tokio::test]
async fn a_refusal_of_more_than_is_drained_closes_but_is_seen() {
    let server = server(Limits::default()).await;
    let mut client = server.connect().await;
    let bytes = 8 * MIB;
    let head = format!("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n");
    client.write(head.as_bytes()).await;
    client.write(&vec![b'x'; bytes]).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.code().as_str(), answer.header("connection")),
        ("body_too_large", Some("close"))
    );
    client.closed().await;
}

#[tokio::test]
async fn a_client_that_asks_first_is_not_made_to_send() {
    // A drain would wait for a body that never comes, longer than the test has patience.
    let limits = Limits {
        drain_timeout: 10 * super::PATIENCE,
        ..Limits::default()
    };
    let server = server(limits).await;
    let expects = "\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut refused = server.connect().await;
    refused
        .write(format!("POST /refuse HTTP/1.1{expects}").as_bytes())
        .await;
    let answer = refused.answer().await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (401, Some("close"))
    );
    let mut taken = server.connect().await;
    taken
        .write(format!("POST /read HTTP/1.1{expects}").as_bytes())
        .await;
    assert_eq!(taken.answer().await.status(), 100);
    taken.write(b"abc").await;
    assert_eq!(taken.answer().await.text(), "3");
}

#[tokio::test]
async fn bodies_share_memory_that_comes_back() {
    let limits = Limits::default();
    let pot = Pot::of_bytes(200_000);
    let server = Server::start(routes(&limits, &pot), limits).await;
    let held = pot.take(Holder::Nobody, 150_000).expect("free");
    let refused = server.post("/read", "", &[b'x'; 100_000]).await;
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (503, "overloaded")
    );
    assert_eq!(
        server.post("/read", "", &[b'x'; 50_000]).await.text(),
        "50000"
    );
    drop(held);
    assert_eq!(
        server.post("/read", "", &[b'x'; 100_000]).await.text(),
        "100000"
    );
    for _ in 0..1000 {
        if pot.free() == 200_000 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} bytes free of 200000", pot.free());
}
