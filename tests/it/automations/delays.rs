//! The time between a change and its message, and the second look at its end.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout, checkout_of, on_change, outcome};
use crate::support::whatsapp::pass;

/// Before a time there is room for a slow machine: the clock goes on by itself.
const ROOM: TimeDelta = TimeDelta::seconds(120);
const DELAY: TimeDelta = TimeDelta::seconds(1_800);

async fn recover(app: &App) -> Value {
    let mut body = on_change("recover", "checkouts", app.greeting().await);
    body["trigger"]["when"] = json!({ "status": "abandoned" });
    body["delay_seconds"] = json!(1_800);
    app.automate(&body).await;
    body
}

async fn states(app: &App) -> Vec<String> {
    app.evaluated().await;
    app.runs("recover").await.iter().map(outcome).collect()
}

#[tokio::test]
async fn a_message_waits_for_its_time_which_is_counted_from_the_change() {
    let app = App::start().await;
    recover(&app).await;
    let made = app.post("checkouts", &checkout("B", "abandoned")).await;
    let changed_at = App::time(&made.expect(201).json()["updated_at"]);
    assert_eq!(states(&app).await, ["scheduled"]);
    let run = &app.runs("recover").await[0];
    assert_eq!(App::time(&run["due_at"]), changed_at + DELAY);
    assert_eq!(run["message_id"], Value::Null, "there is none yet");
    pass(&app, &[app.store_id], DELAY - ROOM).await;
    assert_eq!(states(&app).await, ["scheduled"]);
    assert_eq!(app.count("messages").await, 0);
    app.clock.advance(ROOM);
    assert_eq!(app.outcomes("recover").await, ["sent"]);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_checkout_that_was_recovered_meanwhile_gets_no_message() {
    let app = App::start().await;
    recover(&app).await;
    for (n, key) in ["A", "B", "C"].iter().enumerate() {
        let body = checkout_of(&format!("+3361234567{n}"), key, "abandoned");
        app.post("checkouts", &body).await.expect(201);
    }
    assert_eq!(states(&app).await, ["scheduled"; 3]);
    app.patch("checkouts/A", &json!({ "status": "recovered" }))
        .await
        .expect(200);
    // Recovered, and abandoned again before anybody looked: that is another change, and both match
    // in the end.
    for status in ["recovered", "abandoned"] {
        app.patch("checkouts/B", &json!({ "status": status }))
            .await
            .expect(200);
        app.evaluated().await;
    }
    app.clock.advance(DELAY);
    let by_record = async |key: &str| -> Vec<String> {
        app.at_rest().await;
        let runs = app.runs_at(&format!("checkouts/{key}/runs")).await;
        runs.iter().map(outcome).collect()
    };
    assert_eq!(by_record("A").await, ["skipped condition_no_longer_true"]);
    assert_eq!(by_record("B").await, ["sent", "sent"]);
    assert_eq!(by_record("C").await, ["sent"]);
    assert_eq!(app.count("messages").await, 3);
    app.stop().await;
}

#[tokio::test]
async fn what_is_sent_is_taken_from_the_record_and_the_automation_as_they_are_then() {
    let app = App::start().await;
    let mut body = recover(&app).await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    assert_eq!(states(&app).await, ["scheduled"]);
    let id = app.template("later", "Hello {{name}}, {{shop}}").await;
    body["action"]["send_template"] = json!({
        "template_id": id, "variables": { "name": "/customer/first_name", "shop": "=Tea" },
    });
    app.automate(&body).await;
    let mut customer = checkout("B", "abandoned")["customer"].clone();
    customer["first_name"] = json!("Grace");
    app.post("customers", &customer).await.expect(200);
    app.clock.advance(DELAY);
    assert_eq!(app.outcomes("recover").await, ["sent"]);
    let content: Value = sqlx::query_scalar("select content from messages")
        .fetch_one(&app.pool)
        .await
        .expect("one message");
    let content = content.to_string();
    assert!(
        content.contains("Grace") && content.contains("Tea"),
        "{content}"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_trigger_on_another_resource_or_condition_leaves_nothing_of_what_waits() {
    let app = App::start().await;
    let mut body = recover(&app).await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    assert_eq!(states(&app).await, ["scheduled"]);
    // Any order: a checkout is none, whatever it is like.
    body["trigger"] = json!({ "resource": "orders" });
    app.automate(&body).await;
    app.clock.advance(DELAY);
    let gone = "skipped condition_no_longer_true";
    assert_eq!(app.outcomes("recover").await, [gone]);
    body["trigger"] = json!({ "resource": "checkouts" });
    app.automate(&body).await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    assert_eq!(states(&app).await, [gone, "scheduled"]);
    body["trigger"]["when"] = json!({ "status": "expired" });
    app.automate(&body).await;
    app.clock.advance(DELAY);
    assert_eq!(app.outcomes("recover").await, [gone, gone]);
    assert_eq!(app.count("messages").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn runs_that_wait_outlive_the_service() {
    let app = App::start().await;
    recover(&app).await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    assert_eq!(states(&app).await, ["scheduled"]);
    let later = app.another().await;
    app.stop().await;
    later.clock.advance(DELAY);
    assert_eq!(later.outcomes("recover").await, ["sent"]);
    later.stop().await;
}
