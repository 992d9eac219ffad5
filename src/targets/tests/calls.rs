//! Calls over real sockets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::super::{Allowed, Answer, Call, CallError, Guard, Refused, RetryAfter, Times};

const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A receiver that answers every request with the same text, and closes where none is left to send.
struct Receiver {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (counted, kept) = (Arc::clone(&connections), Arc::clone(&requests));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    while let Some(request) = read_request(&mut stream).await {
                        kept.lock().unwrap().push(request);
                        if answer.is_empty() {
                            std::future::pending::<()>().await;
                        }
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            port,
            connections,
            requests,
        }
    }

    fn url(&self, host: &str) -> Url {
        Url::parse(&format!("http://{host}:{}/hooks?a=b", self.port)).unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A whole request whose body is `{}` or nothing; none when the connection is closed.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") && !text.ends_with(b"{}") {
        let mut bytes = [0; 4_096];
        match stream.read(&mut bytes).await {
            Ok(count) if count > 0 => text.extend_from_slice(&bytes[..count]),
            _ => return None,
        }
    }
    String::from_utf8(text).ok()
}

/// What names resolve to, which can change.
#[derive(Clone)]
struct Names(Arc<Mutex<Vec<IpAddr>>>);

impl Names {
    fn to(found: &[IpAddr]) -> Self {
        Self(Arc::new(Mutex::new(found.to_vec())))
    }

    fn now_to(&self, found: &[IpAddr]) {
        *self.0.lock().unwrap() = found.to_vec();
    }

    fn guard(&self, allowed: &str) -> Guard {
        let names = self.clone();
        Guard {
            lookup: Arc::new(move |_| {
                let found = names.0.lock().unwrap().clone();
                Box::pin(std::future::ready(Ok(found)))
            }),
            times: Times {
                lookup: Duration::from_secs(1),
                turn: Duration::from_millis(100),
                connect: Duration::from_secs(1),
                call: Duration::from_millis(500),
                drain: Duration::from_millis(500),
            },
            ..Guard::new(Allowed::parse(allowed).unwrap())
        }
    }
}

async fn call(guard: &Guard, url: &Url) -> Result<Answer, CallError> {
    let call = Call {
        method: Method::POST,
        url: url.clone(),
        headers: HeaderMap::from_iter([("x-test".parse().unwrap(), HeaderValue::from(7))]),
        body: Bytes::from_static(b"{}"),
    };
    guard.client().unwrap().call(1, call).await
}

#[tokio::test]
async fn a_name_that_leads_inside_only_at_the_call_is_refused_unconnected() {
    let receiver = Receiver::start(OK).await;
    let url = receiver.url("shop.example");
    for inside in [&[LOOPBACK][..], &["::ffff:127.0.0.1".parse().unwrap()]] {
        let names = Names::to(&[PUBLIC]);
        let guard = names.guard("");
        assert_eq!(guard.check_now(1, &url).await, Ok(()));
        names.now_to(inside);
        let refused = call(&guard, &url).await.unwrap_err();
        assert_eq!(refused, CallError::Refused(Refused::Internal));
        assert_eq!(refused.code(), "address_refused");
        assert_eq!(guard.check_now(1, &url).await, Err(Refused::Internal));
    }
    // Whoever connected before would have been counted before this one.
    let allowed = Names::to(&[LOOPBACK]).guard("127.0.0.0/8");
    assert_eq!(call(&allowed, &url).await.unwrap().status, StatusCode::OK);
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn of_several_addresses_only_those_that_are_allowed_are_connected_to() {
    let receiver = Receiver::start(OK).await;
    let second = IpAddr::from([127, 0, 0, 2]);
    let names = Names::to(&[second, LOOPBACK]);
    let url = receiver.url("shop.example");
    let answer = call(&names.guard("127.0.0.1"), &url).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    let only_second = names.guard("127.0.0.2");
    assert_eq!(call(&only_second, &url).await, Err(CallError::NotSent));
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn an_address_that_is_written_out_is_refused_at_the_call() {
    let receiver = Receiver::start(OK).await;
    let guard = Names::to(&[LOOPBACK]).guard("");
    for host in ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"] {
        let refused = call(&guard, &receiver.url(host)).await;
        assert_eq!(
            refused,
            Err(CallError::Refused(Refused::Internal)),
            "{host}"
        );
    }
    let mut url = receiver.url("shop.example");
    url.set_username("a").unwrap();
    let refused = call(&guard, &url).await;
    assert_eq!(refused, Err(CallError::Refused(Refused::Credentials)));
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn what_is_allowed_is_called_with_what_was_given() {
    let receiver = Receiver::start(OK).await;
    let names = Names::to(&[LOOPBACK]);
    for (allowed, host) in [
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.0/8", "localhost"),
        ("127.0.0.1", "shop.example"),
        ("Shop.Example", "shop.example."),
        ("localhost", "LOCALHOST"),
    ] {
        let answer = call(&names.guard(allowed), &receiver.url(host)).await;
        let status = answer.map(|answer| answer.status);
        assert_eq!(status, Ok(StatusCode::OK), "{allowed} {host}");
    }
    let requests = receiver.requests.lock().unwrap();
    assert_eq!(requests.len(), 5);
    let agent = format!("user-agent: keyfold/{}\r\n", env!("CARGO_PKG_VERSION"));
    for request in requests.iter() {
        assert!(
            request.starts_with("POST /hooks?a=b HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("\r\nx-test: 7\r\n"), "{request}");
        assert!(request.contains(&agent), "{request}");
        assert!(request.contains("\r\ncontent-length: 2\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n{}"), "{request}");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let inside = Receiver::start(OK).await;
    let answer = format!(
        "HTTP/1.1 301 Moved Permanently\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
        inside.url("127.0.0.1")
    );
    let receiver = Receiver::start(answer.leak()).await;
    let guard = Names::to(&[LOOPBACK]).guard("127.0.0.0/8");
    let answer = call(&guard, &receiver.url("shop.example")).await.unwrap();
    assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!((receiver.connections(), inside.connections()), (1, 0));
}

#[tokio::test]
async fn retry_after_is_told_with_the_status() {
    let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 90\r\n\
                  content-length: 0\r\n\r\n";
    let receiver = Receiver::start(answer).await;
    let guard = Names::to(&[LOOPBACK]).guard("127.0.0.1");
    let expected = Answer {
        status: StatusCode::SERVICE_UNAVAILABLE,
        retry_after: Some(RetryAfter::After(Duration::from_secs(90))),
    };
    let answer = call(&guard, &receiver.url("shop.example")).await;
    assert_eq!(answer, Ok(expected));
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let after = |seconds| Some(RetryAfter::After(Duration::from_secs(seconds)));
    assert_eq!(RetryAfter::parse("0"), after(0));
    assert_eq!(RetryAfter::parse("007"), after(7));
    assert_eq!(RetryAfter::parse("18446744073709551615"), after(u64::MAX));
    let date: DateTime<Utc> = "1994-11-06T08:49:37Z".parse().unwrap();
    for text in [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ] {
        assert_eq!(
            RetryAfter::parse(text),
            Some(RetryAfter::At(date)),
            "{text}"
        );
    }
    for text in [
        "",
        "-1",
        "+1",
        "1.5",
        "1 second",
        "18446744073709551616",
        "soon",
        "1994-11-06T08:49:37Z",
        "Sun, 06 Nov 1994 08:49:37 PST",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "١٢",
    ] {
        assert_eq!(RetryAfter::parse(text), None, "{text}");
    }
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_given_up() {
    let receiver = Receiver::start("").await;
    let guard = Names::to(&[LOOPBACK]).guard("127.0.0.1");
    let error = call(&guard, &receiver.url("shop.example"))
        .await
        .unwrap_err();
    assert_eq!((error, error.code()), (CallError::TimedOut, "timed_out"));
    assert_eq!(receiver.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_connection_that_is_closed_or_answered_with_no_http_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
        }
    });
    let guard = Names::to(&[LOOPBACK]).guard("127.0.0.1");
    let url = Url::parse(&format!("http://shop.example:{port}/")).unwrap();
    let error = call(&guard, &url).await.unwrap_err();
    assert_eq!((error, error.code()), (CallError::Lost, "connection_lost"));
    let receiver = Receiver::start("220 smtp.example ESMTP\r\n").await;
    let error = call(&guard, &receiver.url("shop.example")).await;
    assert_eq!(error, Err(CallError::Lost));
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let names = Names::to(&[LOOPBACK]);
    let guard = names.guard("127.0.0.1");
    let url = Url::parse(&format!("http://shop.example:{port}/")).unwrap();
    let error = call(&guard, &url).await.unwrap_err();
    assert_eq!((error, error.code()), (CallError::NotSent, "not_connected"));
    // No TLS is spoken there.
    let receiver = Receiver::start("").await;
    let url = Url::parse(&format!("https://shop.example:{}/", receiver.port)).unwrap();
    let guard = Guard {
        times: Times {
            connect: Duration::from_millis(200),
            ..guard.times
        },
        ..guard
    };
    assert_eq!(call(&guard, &url).await, Err(CallError::NotSent));
    names.now_to(&[]);
    let error = call(&guard, &receiver.url("shop.example")).await;
    assert_eq!(error, Err(CallError::NotSent));
    let silent = Guard {
        lookup: Arc::new(|_| Box::pin(std::future::pending())),
        ..guard
    };
    let error = call(&silent, &receiver.url("shop.example")).await;
    assert_eq!(error, Err(CallError::NotSent));
}

#[tokio::test]
async fn the_status_counts_whatever_becomes_of_the_body() {
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1_024 * 1_024));
    for answer in [
        // Ends never, is cut by the time, is longer than anybody reads.
        "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk",
        endless.leak(),
    ] {
        let receiver = Receiver::start(answer).await;
        let guard = Names::to(&[LOOPBACK]).guard("127.0.0.1");
        let answer = call(&guard, &receiver.url("shop.example")).await;
        assert_eq!(answer.map(|answer| answer.status), Ok(StatusCode::OK));
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_short_answer_only() {
    let short = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
        64 * 1_024,
        "x".repeat(64 * 1_024)
    );
    let long = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
        1_024 * 1_024,
        "x".repeat(1_024 * 1_024)
    );
    for (answer, connections) in [(short, 1), (long, 3)] {
        let receiver = Receiver::start(answer.leak()).await;
        let client = Names::to(&[LOOPBACK]).guard("127.0.0.1").client().unwrap();
        for _ in 0..3 {
            let call = Call {
                method: Method::GET,
                url: receiver.url("shop.example"),
                headers: HeaderMap::new(),
                body: Bytes::new(),
            };
            assert_eq!(client.call(1, call).await.unwrap().status, StatusCode::OK);
        }
        assert_eq!(receiver.connections(), connections);
    }
}

#[tokio::test]
async fn an_answer_that_never_ends_holds_a_call_no_longer_than_its_rest_may_take() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc";
    let receiver = Receiver::start(answer).await;
    let guard = Names::to(&[LOOPBACK]).guard("127.0.0.1");
    let guard = Guard {
        times: Times {
            call: Duration::from_secs(600),
            drain: Duration::from_millis(10),
            ..guard.times
        },
        ..guard
    };
    let url = receiver.url("shop.example");
    let called = tokio::time::timeout(Duration::from_secs(60), call(&guard, &url)).await;
    let answer = called.expect("long before the call's own time is over");
    assert_eq!(answer.map(|answer| answer.status), Ok(StatusCode::OK));
}

/// Answers a byte at a time, for ever.
async fn drip(head: &'static str) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    Url::parse(&format!("http://shop.example:{port}/")).unwrap()
}

#[tokio::test]
async fn an_answer_that_drips_is_cut_at_the_end_of_the_calls_time() {
    let guard = Names::to(&[LOOPBACK]).guard("127.0.0.1");
    let patient = Guard {
        times: Times {
            drain: Duration::from_secs(600),
            ..guard.times
        },
        ..guard.clone()
    };
    for (head, expected) in [
        ("HTTP/1.1 200 OK\r\nx-slow: ", Err(CallError::TimedOut)),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n",
            Ok(StatusCode::OK),
        ),
    ] {
        let url = drip(head).await;
        let called = tokio::time::timeout(Duration::from_secs(60), call(&patient, &url)).await;
        let answer = called.expect("it is cut").map(|answer| answer.status);
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn names_of_one_store_that_are_never_answered_leave_look_ups_to_others() {
    let receiver = Receiver::start(OK).await;
    let plain = Names::to(&[LOOPBACK]).guard("127.0.0.1");
    let (known, asked) = (Arc::clone(&plain.lookup), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let guard = Guard {
        lookup: Arc::new(move |name| {
            if name == "shop.example" {
                return known(name);
            }
            count.fetch_add(1, Ordering::SeqCst);
            Box::pin(std::future::pending())
        }),
        times: Times {
            connect: Duration::from_secs(3),
            call: Duration::from_secs(60),
            ..plain.times
        },
        ..plain
    };
    let client = guard.client().unwrap();
    let of = |host: &str| Call {
        method: Method::GET,
        url: receiver.url(host),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    // Saves and calls of one store that wait for such names: look-ups go on when nobody waits.
    let dead = url_of_nobody();
    let saves = (0..40).map(|_| guard.check_now(1, &dead));
    let calls = (0..40).map(|_| client.call(1, of("nobody.example")));
    let (_, calls) = futures_util::join!(
        futures_util::future::join_all(saves),
        futures_util::future::join_all(calls),
    );
    let refused = calls.iter().filter(|call| **call == Err(CallError::NoTurn));
    assert_eq!(refused.count(), 40 - 24, "what had no turn was not tried");
    assert_eq!(asked.load(Ordering::SeqCst), 24 + 8, "half of each");
    // Another store's call is made, and its export judged.
    let answer = client.call(2, of("shop.example")).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    let inside = Guard {
        allowed: Arc::new(Allowed::default()),
        ..guard.clone()
    };
    let judged = inside.check_now(2, &receiver.url("shop.example")).await;
    assert_eq!(judged, Err(Refused::Internal));
}

fn url_of_nobody() -> Url {
    Url::parse("https://nobody.example/").unwrap()
}
