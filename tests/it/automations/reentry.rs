//! Whether an automation runs again.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout, checkout_of, on_change};

/// Room for a slow machine: the clock goes on by itself.
const ROOM: TimeDelta = TimeDelta::seconds(120);
const GRACE: &str = "+33612345679";

async fn automate(app: &App, reentry: Value) -> Value {
    let mut body = on_change("a", "checkouts", app.greeting().await);
    body["trigger"]["when"] = json!({ "status": "abandoned" });
    body["reentry"] = reentry;
    app.automate(&body).await;
    body
}

async fn tag(app: &App, key: &str, tag: &str) {
    let patch = json!({ "tags": [tag] });
    let path = format!("checkouts/{key}");
    let answer = app.patch(&path, &patch).await.expect(200);
    assert_eq!(answer.outcome(), "updated");
}

#[tokio::test]
async fn once_per_record_is_once_whatever_changes() {
    let app = App::start().await;
    automate(&app, json!("once_per_record")).await;
    for key in ["A", "B"] {
        app.post("checkouts", &checkout(key, "abandoned"))
            .await
            .expect(201);
    }
    assert_eq!(app.outcomes("a").await, ["sent", "sent"]);
    for (round, name) in ["x", "y", "z"].iter().enumerate() {
        tag(&app, "A", name).await;
        let mut expected = vec!["sent", "sent"];
        expected.extend(vec!["skipped reentry"; round + 1]);
        assert_eq!(app.outcomes("a").await, expected);
    }
    assert_eq!(app.count("messages").await, 2);
    app.stop().await;
}

#[tokio::test]
async fn a_run_that_waits_counts_and_one_that_sent_nothing_does_not() {
    let app = App::start().await;
    let mut body = automate(&app, json!("once_per_record")).await;
    body["delay_seconds"] = json!(600);
    app.automate(&body).await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    app.evaluated().await;
    tag(&app, "A", "x").await;
    assert_eq!(app.outcomes("a").await, ["scheduled", "skipped reentry"]);
    app.patch("checkouts/A", &json!({ "status": "recovered" }))
        .await
        .expect(200);
    app.clock.advance(TimeDelta::seconds(600));
    let ended = ["skipped condition_no_longer_true", "skipped reentry"];
    assert_eq!(app.outcomes("a").await, ended);
    // A later change has its chance, and so has one after a failure.
    body["action"]["send_template"] = json!({
        "template_id": app.template("name", "Hello {{name}}").await,
        "variables": { "name": "/currency" },
    });
    body["delay_seconds"] = json!(0);
    app.automate(&body).await;
    app.patch("checkouts/A", &json!({ "status": "abandoned" }))
        .await
        .expect(200);
    let failed = "failed variable_missing name";
    assert_eq!(app.outcomes("a").await, [ended[0], ended[1], failed]);
    let mut whole = checkout("A", "abandoned");
    whole["currency"] = json!("EUR");
    app.post("checkouts", &whole).await.expect(200);
    assert_eq!(
        app.outcomes("a").await,
        [ended[0], ended[1], failed, "sent"]
    );
    tag(&app, "A", "y").await;
    assert_eq!(app.outcomes("a").await[4..], ["skipped reentry"]);
    app.stop().await;
}

#[tokio::test]
async fn every_change_is_every_one() {
    let app = App::start().await;
    automate(&app, json!("every_change")).await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    for (round, name) in ["x", "y", "z"].iter().enumerate() {
        assert_eq!(app.outcomes("a").await, vec!["sent"; round + 1]);
        tag(&app, "A", name).await;
    }
    assert_eq!(app.outcomes("a").await, ["sent"; 4]);
    assert_eq!(app.count("messages").await, 4);
    app.stop().await;
}

#[tokio::test]
async fn a_cooldown_is_a_contacts_own_and_over_after_its_time() {
    let app = App::start().await;
    automate(&app, json!({ "cooldown_seconds": 3_600 })).await;
    let hour = TimeDelta::seconds(3_600);
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    // Another record of the same person, and a change of the same one.
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    app.evaluated().await;
    tag(&app, "A", "x").await;
    // Somebody else.
    app.evaluated().await;
    app.post("checkouts", &checkout_of(GRACE, "G", "abandoned"))
        .await
        .expect(201);
    let mut expected = vec!["sent", "skipped reentry", "skipped reentry", "sent"];
    assert_eq!(app.outcomes("a").await, expected);
    app.clock.advance(hour - ROOM);
    tag(&app, "A", "y").await;
    expected.push("skipped reentry");
    assert_eq!(app.outcomes("a").await, expected);
    // What was skipped does not make it longer.
    app.clock.advance(ROOM);
    tag(&app, "B", "x").await;
    expected.push("sent");
    assert_eq!(app.outcomes("a").await, expected);
    tag(&app, "A", "z").await;
    expected.push("skipped reentry");
    assert_eq!(app.outcomes("a").await, expected);
    app.stop().await;
}

#[tokio::test]
async fn records_of_one_contact_that_come_together_share_a_cooldown() {
    let app = App::start().await;
    automate(&app, json!({ "cooldown_seconds": 3_600 })).await;
    let items: Vec<Value> = (0..20)
        .map(|n| {
            let phone = if n % 2 == 0 { GRACE } else { "+33612345678" };
            checkout_of(phone, &format!("B-{n}"), "abandoned")
        })
        .collect();
    app.post("checkouts/bulk", &json!({ "items": items }))
        .await
        .expect(200);
    let outcomes = app.outcomes("a").await;
    let sent = outcomes.iter().filter(|outcome| *outcome == "sent");
    assert_eq!((sent.count(), outcomes.len()), (2, 20));
    let numbers = app.messages_by_number().await;
    assert_eq!(
        numbers,
        [("+33612345678".to_owned(), 1), (GRACE.to_owned(), 1)]
    );
    app.stop().await;
}

#[tokio::test]
async fn automations_do_not_stand_in_each_others_way() {
    let app = App::start().await;
    let id = app.greeting().await;
    let rules = [
        ("once", json!("once_per_record")),
        ("also-once", json!("once_per_record")),
        ("cooldown", json!({ "cooldown_seconds": 3_600 })),
        ("also-cooldown", json!({ "cooldown_seconds": 3_600 })),
        ("every", json!("every_change")),
    ];
    for (name, reentry) in &rules {
        let mut body = on_change(name, "checkouts", id);
        body["reentry"] = reentry.clone();
        app.automate(&body).await;
    }
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    for (name, _) in &rules {
        assert_eq!(app.outcomes(name).await, ["sent"], "{name}");
    }
    tag(&app, "A", "x").await;
    for (name, _) in &rules {
        let second = if *name == "every" {
            "sent"
        } else {
            "skipped reentry"
        };
        assert_eq!(app.outcomes(name).await, ["sent", second], "{name}");
    }
    // A new automation under an old name knows nothing of the old one.
    app.delete("automations/once").await.expect(204);
    let mut body = on_change("once", "checkouts", id);
    body["reentry"] = json!("once_per_record");
    app.automate(&body).await;
    tag(&app, "A", "y").await;
    assert_eq!(app.outcomes("once").await, ["sent"]);
    app.stop().await;
}
