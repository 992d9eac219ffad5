//! Callers and connections that are lost in the middle of a send.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyfold::edge::Limits;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::app::App;
use crate::support::database;
use crate::support::load::nothing_stays_open;
use crate::support::messaging::{PHONE, TEMPLATES, template_to};
use crate::support::proxy::{Fate, Proxy};
use crate::support::scale::{eventually, rounds};

const BREAKS: [Fate; 3] = [Fate::Unheard, Fate::Unanswered, Fate::Unwatched];

/// Sends a request with a key and hangs up a random moment later.
async fn hang_up(app: &App, key: &str, body: &str) {
    let head = format!(
        "POST {TEMPLATES} HTTP/1.1\r\nhost: keyfold\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\nidempotency-key: {key}\r\ncontent-length: {}\r\n\r\n",
        app.key,
        body.len(),
    );
    let address = app.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("{head}{body}");
    stream.write_all(request.as_bytes()).await.expect("taken");
    let wait_us = rand::random_range(0..=40_000);
    tokio::time::sleep(Duration::from_micros(wait_us)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_whose_caller_hung_up_and_came_again_is_sent_once() {
    // A database that is a little away, so that hang-ups meet every step; few connections, so that
    // one that was left in a bad state is met again.
    let url = database::fresh().await;
    let proxy = Proxy::start_with(&url, Duration::from_millis(2), |_| Fate::Passes).await;
    let few = |config: &mut keyfold::config::Config| config.database_max_connections = 6;
    let app = App::start_on(proxy.url, few, Limits::default()).await;
    let template = app.template("hello", "Hello").await;
    let rounds = rounds(60);
    for round in 0..rounds {
        let phone = format!("+3361000{:04}", round / 2);
        let body = template_to(&phone, template, &json!({})).to_string();
        let key = format!("k-{round}");
        for _ in 0..rand::random_range(1..=3) {
            hang_up(&app, &key, &body).await;
        }
        let answer = app.keyed_until_answered(TEMPLATES, &key, &body).await;
        answer.expect(201);
        let sent = i64::try_from(round).expect("few") + 1;
        assert_eq!(app.count("messages").await, sent, "round {round}");
    }
    let rounds = i64::try_from(rounds).expect("few");
    assert_eq!(app.count("idempotency_keys").await, rounds);
    nothing_stays_open(&app.pool).await;
    app.stop().await;
}

/// What happens to the next commit.
type Next = Arc<Mutex<Option<Fate>>>;

/// An app whose next commit can be given a fate. It leaves its outbox alone, so that no other
/// commits come between.
async fn app_with_fate() -> (App, Next, Proxy) {
    let next = Next::default();
    let plan = Arc::clone(&next);
    let taken = move |_| {
        let next = plan.lock().expect("no panic").take();
        next.unwrap_or(Fate::Passes)
    };
    let proxy = Proxy::start(&database::fresh().await, taken).await;
    let idle = |config: &mut keyfold::config::Config| config.works = false;
    let app = App::start_on(proxy.url.clone(), idle, Limits::default()).await;
    (app, next, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_with_a_key_whose_commit_breaks_is_sent_once_and_answered_as_if_nothing_had_been() {
    for fate in BREAKS {
        let (app, next, _road) = app_with_fate().await;
        let template = app.template("hello", "Hello").await;
        for round in 0..rounds(5) {
            let body = template_to(PHONE, template, &json!({})).to_string();
            let key = format!("k-{round}");
            *next.lock().expect("no panic") = Some(fate);
            let first = app.keyed(TEMPLATES, &key, body.as_str()).await.expect(201);
            assert!(next.lock().expect("no panic").is_none(), "a commit broke");
            assert_eq!(first.headers.get("idempotent-replayed"), None, "{fate:?}");
            let again = app.keyed(TEMPLATES, &key, body.as_str()).await.expect(201);
            assert_eq!(again.text, first.text);
            let sent = i64::try_from(round).expect("few") + 1;
            assert_eq!(app.count("messages").await, sent, "{fate:?}");
            assert_eq!(app.count("outbox").await, sent, "{fate:?}");
            app.read(first.header("location")).await.expect(200);
        }
        nothing_stays_open(&app.pool).await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_under_a_key_whose_commit_breaks_is_kept_once() {
    for fate in BREAKS {
        let (app, next, _road) = app_with_fate().await;
        let body = template_to(PHONE, 1_000_000, &json!({})).to_string();
        *next.lock().expect("no panic") = Some(fate);
        let first = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(404);
        assert!(next.lock().expect("no panic").is_none(), "a commit broke");
        assert_eq!(first.code(), "template_not_found");
        assert_eq!(first.headers.get("idempotent-replayed"), None, "{fate:?}");
        let again = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(404);
        assert_eq!(again.text, first.text, "{fate:?}");
        assert_eq!(app.count("idempotency_keys").await, 1);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_without_a_key_whose_commit_breaks_is_never_repeated_by_itself() {
    for fate in BREAKS {
        let (app, next, _road) = app_with_fate().await;
        let template = app.template("hello", "Hello").await;
        let body = template_to(PHONE, template, &json!({})).to_string();
        for _ in 0..rounds(5) {
            let before = app.count("messages").await;
            *next.lock().expect("no panic") = Some(fate);
            let answer = app.deliver(TEMPLATES, body.as_str()).await;
            assert!(next.lock().expect("no panic").is_none(), "a commit broke");
            nothing_stays_open(&app.pool).await;
            let made = app.count("messages").await - before;
            if answer.status == 201 {
                assert_eq!(made, 1, "{fate:?}");
            } else {
                let answer = answer.expect(503);
                assert_eq!(answer.code(), "outcome_unknown");
                assert!(!answer.header("retry-after").is_empty());
                assert!(made <= 1, "{fate:?}: {made}");
            }
            if fate == Fate::Unheard {
                assert_eq!(made, 0, "nobody heard of it");
            }
        }
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_commit_after_which_the_database_is_gone_is_not_called_undone() {
    let (app, next, road) = app_with_fate().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    *next.lock().expect("no panic") = Some(Fate::LastWord);
    let answer = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(503);
    assert_eq!(answer.code(), "outcome_unknown", "it was queued after all");
    road.open_again();
    let again = eventually("the database is there again", || async {
        let answer = app.keyed(TEMPLATES, "k", body.as_str()).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(again.expect(201).header("idempotent-replayed"), "true");
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}
