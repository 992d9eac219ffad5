//! What is stored under a key, and what leaves it free: rule 7.

use http::Method;
use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::{Answer, App};
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};
use crate::support::scale::eventually;

/// A replay of a refusal is the refusal again, byte for byte.
fn assert_replayed(again: &Answer, first: &Answer) {
    assert_eq!(again.status, first.status);
    assert_eq!(again.text, first.text);
    assert_eq!(again.header("content-type"), "application/problem+json");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
}

/// Sends and expects a refusal whose code is this and which is about no field.
async fn refused(
    app: &App,
    path: &str,
    key: &str,
    body: &Value,
    status: u16,
    code: &str,
) -> Answer {
    let answer = app.keyed(path, key, body.to_string()).await.expect(status);
    assert_eq!(answer.code(), code);
    assert_eq!(answer.json().get("errors"), None);
    assert_eq!(answer.headers.get("idempotent-replayed"), None);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    answer
}

#[tokio::test]
async fn a_template_that_was_missing_is_missing_for_its_key_also_when_it_is_there() {
    let app = App::start().await;
    let probe = app.template("probe", "Hello").await;
    let body = template_to(PHONE, probe + 1, &json!({}));
    let first = refused(&app, TEMPLATES, "k", &body, 404, "template_not_found").await;
    assert_eq!(app.template("late", "Hello").await, probe + 1);
    let again = app.keyed(TEMPLATES, "k", body.to_string()).await;
    assert_replayed(&again, &first);
    assert_eq!(app.count("messages").await, 0);
    app.keyed(TEMPLATES, "k-2", body.to_string())
        .await
        .expect(201);
    app.stop().await;
}

#[tokio::test]
async fn a_closed_window_is_closed_for_its_key_also_when_it_is_open() {
    let app = App::start().await;
    let body = text_to(PHONE, "Hello");
    let first = refused(&app, SEND, "k", &body, 422, "outside_service_window").await;
    app.hear_from(PHONE, "Hello").await;
    let again = app.keyed(SEND, "k", body.to_string()).await;
    assert_replayed(&again, &first);
    assert_eq!(app.count("messages").await, 0);
    app.keyed(SEND, "k-2", body.to_string()).await.expect(201);
    app.stop().await;
}

#[tokio::test]
async fn who_had_opted_out_has_for_the_key_also_when_they_are_back() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    app.hear_from(PHONE, "STOP").await;
    let code = "contact_opted_out";
    let sends = [
        (SEND, text_to(PHONE, "Hello")),
        (TEMPLATES, template_to(PHONE, template, &json!({}))),
    ];
    let mut first = Vec::new();
    for (path, body) in &sends {
        first.push(refused(&app, path, "k", body, 422, code).await);
    }
    app.hear_from(PHONE, "START").await;
    for ((path, body), first) in sends.iter().zip(&first) {
        let again = app.keyed(path, "k", body.to_string()).await;
        assert_replayed(&again, first);
        app.keyed(path, "k-2", body.to_string()).await.expect(201);
    }
    assert_eq!(app.count("messages").await, 2);
    app.stop().await;
}

#[tokio::test]
async fn a_request_that_was_refused_before_it_began_leaves_its_key_free() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let (paused, _) = app.another_store(None).await;
    keyfold::tenancy::set_store_status(&app.pool, paused, "paused")
        .await
        .expect("the statement runs")
        .expect("it is there");
    let foreign = foreign_store(&app).await;
    let in_store = |store_id: i64| {
        let mut body = text_to(PHONE, "Hello");
        body["store_id"] = json!(store_id);
        body.to_string()
    };
    let json = ("content-type", "application/json");
    let huge = text_to(PHONE, &"x".repeat(1_100_000)).to_string();
    let cases = [
        (
            401,
            ("authorization", "Bearer kf_wrong"),
            in_store(app.store_id),
        ),
        (415, ("content-type", "text/plain"), in_store(app.store_id)),
        (413, json, huge),
        (400, json, "{".to_owned()),
        (400, json, r#"{"to":"1","to":"1"}"#.to_owned()),
        (422, json, text_to("nobody", "Hello").to_string()),
        (422, json, "[]".to_owned()),
        (404, json, in_store(paused)),
        (404, json, in_store(9_999_999)),
        (403, json, in_store(foreign)),
    ];
    for (status, header, body) in cases {
        let headers = [("idempotency-key", "k"), header];
        let refused = app.send(Method::POST, SEND, &headers, body).await;
        refused.expect(status);
    }
    assert_eq!(app.count("idempotency_keys").await, 0);
    let first = app.keyed(SEND, "k", in_store(app.store_id)).await;
    assert_eq!(first.expect(201).headers.get("idempotent-replayed"), None);
    app.stop().await;
}

#[tokio::test]
async fn variables_that_do_not_fit_leave_the_key_free() {
    let app = App::start().await;
    let template = app.template("hello", "Hello {{first_name}}").await;
    let body = |variables| template_to(PHONE, template, &variables).to_string();
    let wrong = app.keyed(TEMPLATES, "k", body(json!({"x": "y"}))).await;
    let wrong = wrong.expect(422);
    assert_eq!(wrong.faulty(), ["variables.first_name", "variables.x"]);
    assert_eq!(app.count("idempotency_keys").await, 0);
    let right = body(json!({"first_name": "Ada"}));
    let first = app.keyed(TEMPLATES, "k", right).await.expect(201);
    assert_eq!(first.headers.get("idempotent-replayed"), None);
    app.stop().await;
}

#[tokio::test]
async fn a_request_over_the_rate_leaves_its_key_free() {
    let per_minute = |config: &mut keyfold::config::Config| config.rate_limit_per_minute = 60;
    let app = App::start_with(per_minute, Limits::default()).await;
    app.hear_from(PHONE, "Hello").await;
    let used = |n: usize| text_to(PHONE, &format!("Hello {n}")).to_string();
    let mut n = 0;
    let refused = eventually("the rate is used up", || {
        n += 1;
        let (app, body) = (&app, used(n));
        async move {
            let answer = app.keyed(SEND, "k", body).await;
            // The first one has the key; the others are mismatches until the rate is used up.
            (answer.status == 429).then_some(answer)
        }
    })
    .await;
    assert!(!refused.header("retry-after").is_empty());
    let fresh = text_to(PHONE, "fresh").to_string();
    eventually("the fresh key is served", || async {
        let answer = app.keyed(SEND, "fresh", fresh.as_str()).await;
        if answer.status == 429 {
            return None;
        }
        let answer = answer.expect(201);
        assert_eq!(answer.headers.get("idempotent-replayed"), None);
        Some(())
    })
    .await;
    app.stop().await;
}

/// A store of another team.
async fn foreign_store(app: &App) -> i64 {
    let (_, store_id, _) = crate::support::app::tenant(&app.pool, &app.clock, "Other").await;
    store_id
}
