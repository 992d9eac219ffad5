//! Receivers that have a bad day: the schedule, the states, and that nobody else is slowed.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::exports::{calls, export, start};
use crate::support::receiver::{Receiver, Says};
use crate::support::scale::eventually;

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().expect("a time").parse().expect("a time")
}

/// The only delivery that is open, once it was tried so often.
async fn tried(app: &App, attempt: i64) -> Value {
    eventually("it was tried", || async {
        let open = app.deliveries().await;
        open.into_iter().find(|one| one["attempt"] == attempt)
    })
    .await
}

/// How long it waits for its next call, from when that was written.
fn wait_of(delivery: &Value) -> TimeDelta {
    time(&delivery["due_at"]) - time(&delivery["updated_at"])
}

#[tokio::test]
async fn a_failing_receiver_is_called_by_the_schedule_with_one_key_and_then_given_up() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::Status(500));
    app.export(&receiver, &json!({})).await;
    app.push("A", "1.00").await;
    for (attempt, seconds) in (1..).zip([5, 300, 1_800, 7_200, 18_000, 36_000, 36_000]) {
        let delivery = tried(&app, attempt).await;
        assert_eq!(delivery["state"], "waiting");
        assert_eq!(delivery["error_code"], "http_500");
        assert_eq!(delivery["response_status"], 500);
        let wait = wait_of(&delivery).num_milliseconds();
        assert!(
            (seconds * 900..=seconds * 1_100).contains(&wait),
            "{attempt}: {wait}"
        );
        app.clock.advance(TimeDelta::milliseconds(wait));
    }
    let dead = tried(&app, 8).await;
    assert_eq!(dead["state"], "dead");
    let calls = receiver.take_calls();
    assert_eq!(calls.len(), 8);
    assert!(calls.iter().all(|call| call.key() == calls[0].key()));
    app.exported().await;
    assert_eq!(app.count("outbox").await, 0, "nothing waits");
    assert_eq!(app.log().await, [json!(null); 0]);
    // A change lets it begin anew.
    receiver.says(|_| Says::Status(204));
    app.push("A", "2.00").await;
    app.exported().await;
    assert_eq!(receiver.calls().len(), 1);
    assert_eq!(app.deliveries().await, [json!(null); 0]);
    app.stop().await;
}

#[tokio::test]
async fn what_failed_in_a_run_is_sent_by_the_schedule_and_counted() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(5).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    receiver.says(|call| Says::Status(if call.number < 2 { 502 } else { 200 }));
    assert_eq!(app.run_through().await, [3, 0, 2]);
    app.clock.advance(TimeDelta::seconds(10));
    app.exported().await;
    let runs = app.get("exports/erp/runs").await.expect(200).json();
    let counts = crate::support::exports::counts(&runs["data"][0]);
    assert_eq!(counts, [5, 0, 0]);
    let id = runs["data"][0]["run_id"].as_str().expect("an id");
    let sent = app
        .get(&format!("exports/erp/runs/{id}/results?outcome=sent"))
        .await;
    assert_eq!(
        sent.expect(200).json()["data"].as_array().map(Vec::len),
        Some(5)
    );
    app.stop().await;
}

#[tokio::test]
async fn retry_after_holds_the_whole_export_and_saving_ends_it() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::With(429, "retry-after", "120".to_owned()));
    app.export(&receiver, &json!({})).await;
    app.push("A", "1.00").await;
    let delivery = tried(&app, 1).await;
    assert_eq!(delivery["error_code"], "http_429");
    let wait = wait_of(&delivery).num_seconds();
    assert!((118..=121).contains(&wait), "{wait}");
    app.push("B", "1.00").await;
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 1, "nothing else is sent meanwhile");
    receiver.says(|_| Says::Status(200));
    // The same again ends the wait: B goes at once, A by its own time.
    let saved = app
        .post("exports", &export(&receiver, &json!({})))
        .await
        .expect(200);
    assert_eq!(saved.outcome(), "unchanged");
    assert_eq!(calls(&receiver, 2).await[1].external_id(), "B");
    app.clock.advance(TimeDelta::seconds(122));
    assert_eq!(calls(&receiver, 3).await[2].external_id(), "A");
    app.stop().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_pauses_the_export_and_loses_nothing() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::Status(410));
    app.export(&receiver, &json!({})).await;
    app.push("A", "1.00").await;
    let paused = eventually("it is paused", || async {
        let export = app.get("exports/erp").await.expect(200).json();
        (export["status"] == "paused").then_some(export)
    })
    .await;
    assert_eq!(paused["paused_code"], "gone");
    app.push("B", "1.00").await;
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 1);
    receiver.says(|_| Says::Status(200));
    let resumed = app
        .post("exports", &export(&receiver, &json!({})))
        .await
        .expect(200);
    assert_eq!(resumed.json()["paused_code"], Value::Null);
    app.exported().await;
    let called: Vec<String> = receiver.calls()[1..]
        .iter()
        .map(|call| call.external_id())
        .collect();
    assert_eq!(called.len(), 2, "{called:?}");
    app.stop().await;
}

#[tokio::test]
async fn redirects_are_not_followed_and_broken_connections_are_failures() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let inside = "http://169.254.169.254/latest/meta-data".to_owned();
    for (says, code) in [
        (Says::With(301, "location", inside), "http_301"),
        (Says::Reset, "connection_lost"),
        (Says::Status(404), "http_404"),
    ] {
        let answer = says.clone();
        receiver.says(move |_| answer.clone());
        let name = format!("e-{code}");
        app.export(&receiver, &json!({ "external_id": name })).await;
        app.push(&format!("A-{code}"), "1.00").await;
        let delivery = eventually("it was tried", || async {
            let page = app.get(&format!("exports/{name}/deliveries")).await;
            let open = page.expect(200).json()["data"][0].clone();
            (open["attempt"] == 1).then_some(open)
        })
        .await;
        assert_eq!(delivery["error_code"], code);
        app.delete(&format!("exports/{name}")).await.expect(204);
    }
    app.stop().await;
}

#[tokio::test]
async fn nobody_listens_and_addresses_that_became_internal() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let nowhere = format!("http://{}/", unused.local_addr().expect("bound"));
    drop(unused);
    app.export(&receiver, &json!({ "url": nowhere })).await;
    app.push("A", "1.00").await;
    assert_eq!(tried(&app, 1).await["error_code"], "not_connected");
    sqlx::query("update exports set url = 'http://10.1.2.3/', updated_at = updated_at + '1 s'")
        .execute(&app.pool)
        .await
        .expect("changed behind our back");
    app.push("B", "1.00").await;
    let refused = eventually("it was refused", || async {
        let open = app.deliveries().await;
        open.into_iter()
            .find(|one| one["external_id"] == "B" && one["attempt"] == 1)
    })
    .await;
    assert_eq!(refused["error_code"], "address_refused");
    app.stop().await;
}

#[tokio::test]
async fn a_receiver_that_never_answers_slows_nobody_and_is_called_16_times_at_once_at_most() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let deaf = Receiver::start().await;
    deaf.says(|_| Says::Nothing);
    app.export(&deaf, &json!({ "external_id": "deaf" })).await;
    app.export(&receiver, &json!({})).await;
    let began = Instant::now();
    app.push_many(200).await;
    calls(&receiver, 200).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    let waiting = deaf.calls();
    assert_eq!(waiting.len(), 16);
    assert!(receiver.calls().iter().all(|call| call.beside < 16));
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_is_under_way_at_shutdown_is_settled() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::Slowly(Duration::from_secs(2)));
    app.export(&receiver, &json!({})).await;
    app.push("A", "1.00").await;
    calls(&receiver, 1).await;
    let pool = app.pool.clone();
    app.stop().await;
    let logged: i64 = sqlx::query_scalar("select count(*) from export_log")
        .fetch_one(&pool)
        .await
        .expect("asked");
    assert_eq!((logged, receiver.calls().len()), (1, 1));
}
