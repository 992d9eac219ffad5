//! What every request meets: id, sizes, panics, problem bodies.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::HeaderMap;

use tokio::io::AsyncWriteExt as _;

use super::Server;
use crate::edge::{Limits, RateLimiter, RequestId};
use crate::error::Error;

fn routes() -> Router {
    Router::new()
        .route("/ok", get(|axum::Extension(id): axum::Extension<RequestId>| async move {
            id.as_str().to_owned()
        }))
        .route("/panic/{number}", get(panics))
        .route("/limited", get(limited))
        .route("/overloaded", get(async || Error::Overloaded))
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
}

async fn panics() -> Response {
    panic!("the handler is broken");
}

async fn limited() -> Response {
    let decision = RateLimiter::new(3).check(1);
    let mut headers = HeaderMap::new();
    decision.describe(&mut headers);
    (headers, Error::internal("a cause")).into_response()
}

async fn server() -> Server {
    Server::start(routes(), Limits::default()).await
}

#[tokio::test]
async fn the_request_id_is_echoed_or_replaced() {
    let server = server().await;
    let kept = server
        .send("GET /ok HTTP/1.1\r\nX-Request-Id: try-7", b"")
        .await;
    assert_eq!((kept.status(), kept.text()), (200, "try-7"));
    assert_eq!(kept.header("x-request-id"), Some("try-7"));
    let replaced = server
        .send("GET /ok HTTP/1.1\r\nX-Request-Id: try 7", b"")
        .await;
    assert_eq!(replaced.text().len(), 36);
    assert_eq!(replaced.header("x-request-id"), Some(replaced.text()));
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_the_connection_lives_on() {
    let server = server().await;
    let mut client = server.connect().await;
    client
        .write(b"GET /panic/1 HTTP/1.1\r\nX-Request-Id: p\r\nHost: x\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.code().as_str()), (500, "internal"));
    assert_eq!(answer.header("x-request-id"), Some("p"));
    assert!(!answer.text().contains("broken"));
    client.write(b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_target_may_have_8192_bytes() {
    let server = server().await;
    for (bytes, status) in [(8192, 200), (8193, 414)] {
        let query = "q".repeat(bytes - "/ok?".len());
        let answer = server.send(&format!("GET /ok?{query} HTTP/1.1"), b"").await;
        assert_eq!(answer.status(), status);
    }
    let unmatched = server
        .send(&format!("GET /{} HTTP/1.1", "q".repeat(9000)), b"")
        .await;
    assert_eq!(unmatched.code(), "target_too_long");
}

#[tokio::test]
async fn headers_may_have_16384_bytes() {
    let server = server().await;
    // "host: x" and "x-big: …", each with a line end.
    let overhead = "host: x\r\n".len() + "x-big: \r\n".len();
    for (bytes, status) in [(16_384, 200), (16_385, 431)] {
        let value = "v".repeat(bytes - overhead);
        let answer = server
            .send(&format!("GET /ok HTTP/1.1\r\nX-Big: {value}"), b"")
            .await;
        assert_eq!(answer.status(), status);
        if status == 431 {
            assert_eq!(answer.code(), "headers_too_large");
        }
    }
}

#[tokio::test]
async fn a_problem_keeps_the_headers_of_inner_layers() {
    let server = server().await;
    let limited = server.send("GET /limited HTTP/1.1", b"").await;
    assert_eq!(limited.code(), "internal");
    assert_eq!(limited.header("x-ratelimit-limit"), Some("3"));
    let wrong_method = server.send("POST /ok HTTP/1.1", b"").await;
    assert_eq!(
        (wrong_method.status(), wrong_method.header("allow")),
        (405, Some("GET,HEAD"))
    );
    assert_eq!(wrong_method.code(), "method_not_allowed");
    assert_eq!(
        server.send("GET /nowhere HTTP/1.1", b"").await.code(),
        "route_not_found"
    );
}

#[tokio::test]
async fn an_overloaded_answer_is_held_back() {
    let server = server().await;
    let begun = std::time::Instant::now();
    let answer = server.send("GET /overloaded HTTP/1.1", b"").await;
    assert_eq!(
        (answer.code().as_str(), answer.header("retry-after")),
        ("overloaded", Some("1"))
    );
    assert!(begun.elapsed().as_millis() >= 200);
}

#[tokio::test]
async fn a_head_request_is_answered_without_a_body() {
    let server = server().await;
    let mut client = server.connect().await;
    client
        .write(b"HEAD /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut client.0, &mut bytes)
        .await
        .expect("an answer");
    let text = String::from_utf8(bytes).expect("ASCII");
    assert!(
        text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"),
        "{text}"
    );
}

#[tokio::test]
async fn exactly_one_valid_host_is_needed() {
    let server = server().await;
    for (head, status) in [
        ("GET /ok HTTP/1.1\r\nHost: x:8080\r\n\r\n", 200),
        ("GET /ok HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", 200),
        ("GET /ok HTTP/1.0\r\n\r\n", 200),
        ("GET /ok HTTP/1.1\r\n\r\n", 400),
        ("GET /ok HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        ("GET /ok HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        ("GET /ok HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET /ok HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET /ok HTTP/1.1\r\nHost: user@x\r\n\r\n", 400),
        ("GET /ok HTTP/1.1\r\nHost: x/ok\r\n\r\n", 400),
    ] {
        let mut client = server.connect().await;
        client.write(head.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), status, "{head}");
        if status == 400 {
            assert_eq!(answer.code(), "host_invalid", "{head}");
        }
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn a_client_that_has_said_everything_gets_its_answer() {
    let server = server().await;
    let mut client = server.connect().await;
    client.write(b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.0.shutdown().await.expect("half closed");
    assert_eq!(client.answer().await.status(), 200);
    client.closed().await;
}
