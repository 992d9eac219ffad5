//! In which order a send is checked: 401, 415, 413, 400, 422, 404, 403, 429.

use http::Method;
use keyfold::edge::Limits;
use serde_json::json;

use crate::support::app::{self, App};
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};
use crate::support::rows::snapshot;
use crate::support::scale::eventually;

const JSON: (&str, &str) = ("content-type", "application/json");
const NO_KEY: (&str, &str) = ("idempotency-key", "not a key");
const KEY: (&str, &str) = ("idempotency-key", "k");

#[tokio::test]
async fn of_all_that_is_wrong_with_a_send_the_first_is_answered() {
    let app = App::start().await;
    let (_, foreign, _) = app::tenant(&app.pool, &app.clock, "Other").await;
    let (paused, _) = app.another_store(None).await;
    let (foreign_paused, _) = {
        let (_, store_id, key) = app::tenant(&app.pool, &app.clock, "Third").await;
        (store_id, key)
    };
    for store_id in [paused, foreign_paused] {
        keyfold::tenancy::set_store_status(&app.pool, store_id, "paused")
            .await
            .expect("the statement runs");
    }
    let wrong = ("authorization", "Bearer kf_wrong");
    let text = ("content-type", "text/plain");
    let huge = format!("{}{}", "x".repeat(1_100_000), "{");
    let in_store = |store_id: i64, to: &str| {
        let mut body = text_to(to, "Hello");
        body["store_id"] = json!(store_id);
        body.to_string()
    };
    let twice = r#"{"to":"nobody","to":"nobody"}"#.to_owned();
    let before = snapshot(&app.pool).await;
    for (status, code, headers, body) in [
        (401, "unauthorized", [wrong, text, NO_KEY], huge.clone()),
        (
            415,
            "unsupported_media_type",
            [text, text, NO_KEY],
            huge.clone(),
        ),
        (413, "body_too_large", [JSON, NO_KEY, NO_KEY], huge),
        (
            400,
            "idempotency_key_invalid",
            [JSON, JSON, NO_KEY],
            in_store(foreign, "nobody"),
        ),
        (400, "duplicate_key", [JSON, JSON, KEY], twice),
        (
            422,
            "validation_failed",
            [JSON, JSON, KEY],
            in_store(foreign, "nobody"),
        ),
        (
            422,
            "validation_failed",
            [JSON, JSON, KEY],
            in_store(9_999_999, "nobody"),
        ),
        (
            404,
            "store_not_found",
            [JSON, JSON, KEY],
            in_store(9_999_999, PHONE),
        ),
        (
            404,
            "store_not_found",
            [JSON, JSON, KEY],
            in_store(paused, PHONE),
        ),
        (
            404,
            "store_not_found",
            [JSON, JSON, KEY],
            in_store(foreign_paused, PHONE),
        ),
        (
            403,
            "store_forbidden",
            [JSON, JSON, KEY],
            in_store(foreign, PHONE),
        ),
    ] {
        let mut headers = headers.to_vec();
        headers.dedup();
        let answer = app.send(Method::POST, SEND, &headers, body).await;
        assert_eq!(answer.status, status, "{code}: {}", answer.text);
        if code != "duplicate_key" {
            assert_eq!(answer.code(), code);
        }
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let is_401 = !answer.header("www-authenticate").is_empty();
        assert_eq!(is_401, status == 401);
    }
    assert_eq!(snapshot(&app.pool).await, before, "nothing was written");
    app.stop().await;
}

#[tokio::test]
async fn the_rate_comes_before_whatever_the_store_would_say() {
    let per_minute = |config: &mut keyfold::config::Config| config.rate_limit_per_minute = 5;
    let app = App::start_with(per_minute, Limits::default()).await;
    let body = template_to(PHONE, 1_000_000, &json!({})).to_string();
    eventually("the rate is used up", || async {
        let answer = app.deliver(TEMPLATES, body.as_str()).await;
        if answer.status == 404 {
            assert_eq!(answer.code(), "template_not_found");
            return None;
        }
        let answer = answer.expect(429);
        assert_eq!(answer.code(), "rate_limited");
        assert_eq!(answer.header("x-ratelimit-remaining"), "0");
        let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!(seconds >= 1);
        Some(())
    })
    .await;
    // Fields are looked at before.
    app.deliver(TEMPLATES, "{}").await.expect(422);
    app.stop().await;
}

#[tokio::test]
async fn what_names_a_key_but_no_store_of_it_counts_against_the_key() {
    let per_minute = |config: &mut keyfold::config::Config| config.rate_limit_per_minute = 5;
    let unknown = "/api/v1/stores/999999/orders";
    let webhook = "/api/v1/automations/0198f7a4-5c7e-7000-8000-000000000000";
    for (method, path, body, status) in [
        (Method::GET, unknown, "", 404),
        (Method::GET, "/api/v1/me", "", 200),
        (Method::POST, webhook, "{}", 404),
        (Method::POST, TEMPLATES, "{}", 422),
        (Method::POST, TEMPLATES, "{", 400),
        (Method::GET, "/api/v1/messages?store_id=999999", "", 404),
    ] {
        let app = App::start_with(per_minute, Limits::default()).await;
        let json = [("content-type", "application/json")];
        let mut statuses = Vec::new();
        for _ in 0..8 {
            let answer = app.send(method.clone(), path, &json, body).await;
            statuses.push(answer.status.as_u16());
        }
        assert_eq!(statuses[..5], [status; 5], "{path} {body}");
        assert!(statuses[5..].contains(&429), "{path} {body}: {statuses:?}");
        // The store's own requests are counted by themselves.
        app.get("orders").await.expect(200);
        app.stop().await;
    }
}

#[tokio::test]
async fn answers_about_a_store_tell_its_rate() {
    let per_minute = |config: &mut keyfold::config::Config| config.rate_limit_per_minute = 1_000;
    let app = App::start_with(per_minute, Limits::default()).await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let closed = text_to("+33612345679", "Hello").to_string();
    let sent = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    let store = format!("?store_id={}", app.store_id);
    let answers = [
        app.keyed(SEND, "k", body.as_str()).await.expect(201),
        app.keyed(SEND, "k", closed.as_str()).await.expect(409),
        app.deliver(SEND, closed).await.expect(422),
        app.read(sent.header("location")).await.expect(200),
        app.read(&format!("/api/v1/messages{store}"))
            .await
            .expect(200),
        app.read(&format!("/api/v1/get_templates{store}"))
            .await
            .expect(200),
        app.read(&format!("/api/v1/idempotency-keys{store}"))
            .await
            .expect(200),
        app.remove(&format!("/api/v1/idempotency-keys/send/k{store}"))
            .await
            .expect(204),
        sent,
    ];
    for answer in answers {
        assert_eq!(answer.header("x-ratelimit-limit"), "1000");
        for name in ["x-ratelimit-remaining", "x-ratelimit-reset"] {
            let number: u64 = answer.header(name).parse().expect(name);
            assert!(number < 1_000);
        }
    }
    let me = app.read("/api/v1/me").await.expect(200);
    assert_eq!(me.headers.get("x-ratelimit-limit"), None, "about no store");
    app.stop().await;
}

#[tokio::test]
async fn wrong_methods_and_unknown_parameters_are_refused() {
    let app = App::start().await;
    for (method, path, allowed) in [
        (Method::GET, TEMPLATES, "POST"),
        (Method::PUT, SEND, ""),
        (Method::POST, "/api/v1/messages", "GET"),
        (Method::DELETE, "/api/v1/messages", "GET"),
        (Method::POST, "/api/v1/get_templates", "GET"),
        (Method::POST, "/api/v1/me", "GET"),
        (Method::POST, "/api/v1/idempotency-keys", "GET"),
    ] {
        let answer = app.send(method.clone(), path, &[JSON], "").await;
        assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text);
        assert!(answer.header("allow").contains(allowed), "{method} {path}");
    }
    let body = text_to(PHONE, "Hello").to_string();
    let sent = app.deliver(&format!("{SEND}?dry_run=true"), body).await;
    assert_eq!(sent.expect(400).code(), "query_invalid");
    app.stop().await;
}
