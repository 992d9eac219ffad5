//! Paused, activated, deleted.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout, on_change, outcome};

const DELAY: TimeDelta = TimeDelta::seconds(1_800);

#[tokio::test]
async fn a_paused_automation_notes_what_it_would_have_done_and_sends_nothing() {
    let app = App::start().await;
    let mut body = on_change("a", "checkouts", app.greeting().await);
    body["reentry"] = json!("once_per_record");
    body["trigger"]["when"] = json!({ "status": "abandoned" });
    body["status"] = json!("paused");
    app.automate(&body).await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    app.post("checkouts", &checkout("C", "recovered"))
        .await
        .expect(201);
    assert_eq!(app.outcomes("a").await, ["skipped automation_paused"]);
    body["status"] = json!("active");
    app.automate(&body).await;
    assert_eq!(app.outcomes("a").await, ["skipped automation_paused"]);
    // What it skipped is no run: the record may still have its one.
    app.patch("checkouts/B", &json!({ "tags": ["vip"] }))
        .await
        .expect(200);
    let sent = ["skipped automation_paused", "sent"];
    assert_eq!(app.outcomes("a").await, sent);
    body["status"] = json!("paused");
    app.automate(&body).await;
    app.patch("checkouts/B", &json!({ "tags": ["gold"] }))
        .await
        .expect(200);
    let last = app.outcomes("a").await;
    assert_eq!(last[..2], sent);
    assert_eq!(last[2..], ["skipped automation_paused"]);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

/// An automation with a delay and a run that waits.
async fn one_that_waits(app: &App) -> Value {
    let mut body = on_change("a", "checkouts", app.greeting().await);
    body["delay_seconds"] = json!(1_800);
    app.automate(&body).await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    app.evaluated().await;
    body
}

#[tokio::test]
async fn what_waits_when_its_automation_is_paused_is_not_sent() {
    let app = App::start().await;
    let mut body = one_that_waits(&app).await;
    body["status"] = json!("paused");
    app.automate(&body).await;
    app.clock.advance(DELAY);
    assert_eq!(app.outcomes("a").await, ["skipped automation_paused"]);
    body["status"] = json!("active");
    app.automate(&body).await;
    assert_eq!(app.outcomes("a").await, ["skipped automation_paused"]);
    app.stop().await;
}

#[tokio::test]
async fn what_waits_when_its_automation_is_paused_and_activated_again_is_sent() {
    let app = App::start().await;
    let mut body = one_that_waits(&app).await;
    for status in ["paused", "active"] {
        body["status"] = json!(status);
        app.automate(&body).await;
    }
    app.clock.advance(DELAY);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    app.stop().await;
}

#[tokio::test]
async fn what_waits_when_its_automation_is_deleted_is_not_sent_and_can_still_be_read() {
    let app = App::start().await;
    let body = one_that_waits(&app).await;
    app.delete("automations/a").await.expect(204);
    // A new one of this name is another one.
    app.automate(&body).await;
    app.clock.advance(DELAY);
    assert_eq!(app.outcomes("a").await, [""; 0]);
    let runs = app.runs_at("checkouts/B/runs").await;
    let outcomes: Vec<String> = runs.iter().map(outcome).collect();
    assert_eq!(outcomes, ["skipped automation_deleted"]);
    assert_eq!(runs[0]["automation"], "a");
    assert_eq!(app.count("messages").await, 0);
    app.stop().await;
}
