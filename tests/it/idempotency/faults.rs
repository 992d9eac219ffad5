//! Faults of ours, and the database's: the end of rule 7.

use keyfold::edge::Limits;
use serde_json::json;
use sqlx::Executor as _;

use crate::support::app::App;
use crate::support::database::OwnServer;
use crate::support::messaging::{PHONE, TEMPLATES, template_to};
use crate::support::scale::eventually;

async fn app_that_replays_faults(replays: bool) -> App {
    let change = |config: &mut keyfold::config::Config| {
        config.idempotency_replay_5xx = replays;
        // A worker would only complain about the missing table.
        config.works = false;
    };
    App::start_with(change, Limits::default()).await
}

async fn run(app: &App, statement: &'static str) {
    app.pool.execute(statement).await.expect(statement);
}

#[tokio::test]
async fn a_fault_is_not_kept_and_the_retry_sends() {
    let app = app_that_replays_faults(false).await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    run(&app, "alter table outbox rename to outbox_gone").await;
    for _ in 0..2 {
        let failed = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(500);
        assert_eq!(failed.code(), "internal");
        assert_eq!(failed.headers.get("idempotent-replayed"), None);
    }
    for table in ["idempotency_keys", "messages", "contacts", "events"] {
        assert_eq!(app.count(table).await, 0, "{table}");
    }
    run(&app, "alter table outbox_gone rename to outbox").await;
    let sent = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
    assert_eq!(sent.headers.get("idempotent-replayed"), None);
    let again = app.keyed(TEMPLATES, "k", body).await.expect(201);
    assert_eq!(again.text, sent.text);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn by_the_setting_a_fault_is_kept_and_replayed_and_nothing_is_sent() {
    let app = app_that_replays_faults(true).await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    run(&app, "alter table outbox rename to outbox_gone").await;
    let failed = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(500);
    assert_eq!(failed.code(), "internal");
    assert_eq!(failed.header("content-type"), "application/problem+json");
    assert_eq!(failed.headers.get("idempotent-replayed"), None);
    let id = failed.header("x-request-id");
    assert_eq!(failed.json()["request_id"], id, "it finds the log line");
    run(&app, "alter table outbox_gone rename to outbox").await;
    let again = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(500);
    assert_eq!(again.text, failed.text);
    assert_eq!(again.header("content-type"), "application/problem+json");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(app.count("messages").await, 0);
    let log = format!(
        "/api/v1/idempotency-keys/templates/k?store_id={}",
        app.store_id
    );
    let entry = app.read(&log).await.expect(200).json();
    assert_eq!(
        (&entry["status"], &entry["replays"]),
        (&json!(500), &json!(1))
    );
    // Forgetting it is how one sends after all.
    app.remove(&log).await.expect(204);
    app.keyed(TEMPLATES, "k", body).await.expect(201);
    app.stop().await;
}

#[tokio::test]
async fn without_a_key_a_fault_is_a_fault_whatever_the_setting() {
    let app = app_that_replays_faults(true).await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    run(&app, "alter table outbox rename to outbox_gone").await;
    app.deliver(TEMPLATES, body).await.expect(500);
    assert_eq!(app.count("idempotency_keys").await, 0);
    assert_eq!(app.count("messages").await, 0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_503_is_never_kept_whatever_the_setting() {
    for replays in [false, true] {
        let mut server = OwnServer::start(&format!("never-kept-{replays}")).await;
        let change = |config: &mut keyfold::config::Config| {
            config.idempotency_replay_5xx = replays;
        };
        let app = App::start_on(server.url.clone(), change, Limits::default()).await;
        let template = app.template("hello", "Hello").await;
        let body = template_to(PHONE, template, &json!({})).to_string();
        server.stop();
        for _ in 0..2 {
            let away = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(503);
            assert_eq!(away.code(), "database_unavailable");
            assert!(!away.header("retry-after").is_empty());
        }
        server.start_again();
        let sent = eventually("the database is there again", || async {
            let answer = app.keyed(TEMPLATES, "k", body.as_str()).await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        let sent = sent.expect(201);
        assert_eq!(sent.headers.get("idempotent-replayed"), None);
        assert_eq!(app.count("messages").await, 1);
        app.stop().await;
    }
}
