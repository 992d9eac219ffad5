//! When an automation fires, and when it does not.

use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout, on_change};
use crate::support::kinds::{kinds, with};

/// Whose events nobody evaluates until another service does.
async fn idle_app() -> App {
    App::start_with(|config| config.works = false, Limits::default()).await
}

/// One that fires with every change of an abandoned checkout.
fn recover(template_id: i64) -> Value {
    let mut body = on_change("recover", "checkouts", template_id);
    body["trigger"]["when"] = json!({ "status": "abandoned" });
    body
}

/// Which records the runs of an automation were about.
async fn fired(app: &App, automation: &str) -> Vec<String> {
    app.at_rest().await;
    let runs = app.runs(automation).await;
    let name = |run: &Value| run["external_id"].as_str().expect("a name").to_owned();
    runs.iter().map(name).collect()
}

#[tokio::test]
async fn an_effective_change_fires_once_and_nothing_else_does() {
    let app = App::start().await;
    app.automate(&recover(app.greeting().await)).await;
    let first = with(
        &checkout("B", "abandoned"),
        "source_updated_at",
        json!("2026-01-15T10:00:00Z"),
    );
    app.post("checkouts", &first).await.expect(201);
    assert_eq!(app.outcomes("recover").await, ["sent"]);

    // A replay, a stale write, a dry run, a patch of nothing, and one that is refused.
    for _ in 0..3 {
        let again = app.post("checkouts", &first).await.expect(200);
        assert_eq!(again.outcome(), "unchanged");
    }
    let mut stale = with(&first, "source_updated_at", json!("2026-01-15T09:59:59Z"));
    stale["tags"] = json!(["late"]);
    let stale = app.post("checkouts", &stale).await.expect(200);
    assert_eq!(stale.outcome(), "stale");
    let mut tried = first.clone();
    tried["tags"] = json!(["tried"]);
    app.post("checkouts?dry_run=true", &tried).await.expect(200);
    let nothing = app.patch("checkouts/B", &json!({})).await.expect(200);
    assert_eq!(nothing.outcome(), "unchanged");
    let same = json!({ "status": "abandoned" });
    let same = app.patch("checkouts/B", &same).await.expect(200);
    assert_eq!(same.outcome(), "unchanged");
    app.patch("checkouts/B", &json!({ "status": "lost" }))
        .await
        .expect(422);
    assert_eq!(app.outcomes("recover").await, ["sent"]);

    // A patch that leaves it matching, one that does not, and one that makes it match again.
    for (patch, runs) in [
        (json!({ "tags": ["vip"] }), 2),
        (json!({ "status": "recovered" }), 2),
        (json!({ "tags": ["vip", "won"] }), 2),
        (json!({ "status": "abandoned" }), 3),
    ] {
        let changed = app.patch("checkouts/B", &patch).await.expect(200);
        assert_eq!(changed.outcome(), "updated");
        assert_eq!(app.outcomes("recover").await, vec!["sent"; runs], "{patch}");
    }
    assert_eq!(app.count("messages").await, 3);
    app.stop().await;
}

#[tokio::test]
async fn a_run_tells_what_set_it_off_and_its_message_is_there() {
    let app = App::start().await;
    app.automate(&recover(app.greeting().await)).await;
    let made = app.post("checkouts", &checkout("B", "abandoned")).await;
    let made = made.expect(201).json();
    app.at_rest().await;
    let runs = app.runs("recover").await;
    let run = &runs[0];
    let expected = json!({
        "run_id": run["run_id"], "automation": "recover", "resource": "checkouts",
        "record_id": made["id"], "external_id": "B", "status": "sent", "reason": null,
        "detail": null, "message_id": run["message_id"], "due_at": run["due_at"],
        "created_at": run["created_at"], "updated_at": run["updated_at"],
    });
    assert_eq!(runs, [expected]);
    let message = app.message_becomes(&run["message_id"], "delivered").await;
    assert_eq!(message["to"], "+33612345678");
    assert!(App::time(&run["created_at"]) >= App::time(&made["updated_at"]));
    assert!(App::time(&run["updated_at"]) >= App::time(&run["created_at"]));
    app.stop().await;
}

#[tokio::test]
async fn records_of_every_resource_set_automations_off_by_a_change_of_their_own() {
    let app = App::start().await;
    let id = app.greeting().await;
    for kind in kinds() {
        app.automate(&on_change(kind.path, kind.path, id)).await;
    }
    // Shipments find their recipient through an order.
    for (n, kind) in kinds().iter().enumerate() {
        let key = format!("K-{n}");
        let mut body = kind.first(&key);
        if kind.path == "shipments" {
            body["order_external_id"] = json!("K-0");
        }
        app.post(kind.path, &body).await.expect(201);
        assert_eq!(fired_of(&app, kind.path, &key).await, 1, "{}", kind.path);
        let mut second = kind.second(&key);
        if kind.path == "shipments" {
            second["order_external_id"] = json!("K-0");
        }
        app.post(kind.path, &second).await.expect(200);
        assert_eq!(fired_of(&app, kind.path, &key).await, 2, "{}", kind.path);
    }
    app.stop().await;
}

/// How many messages an automation has sent about a record.
async fn fired_of(app: &App, automation: &str, key: &str) -> usize {
    app.at_rest().await;
    let runs = app.runs(automation).await;
    let about = |run: &&Value| run["external_id"] == key && run["status"] == "sent";
    runs.iter().filter(about).count()
}

#[tokio::test]
async fn records_that_were_there_fire_only_when_they_change() {
    let app = App::start().await;
    let id = app.greeting().await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    app.automate(&recover(id)).await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(200);
    app.post("checkouts", &checkout("C", "abandoned"))
        .await
        .expect(201);
    assert_eq!(fired(&app, "recover").await, ["C"]);
    app.patch("checkouts/B", &json!({ "tags": ["vip"] }))
        .await
        .expect(200);
    assert_eq!(fired(&app, "recover").await, ["C", "B"]);
    app.stop().await;
}

#[tokio::test]
async fn changes_before_a_new_trigger_or_an_activation_never_fire() {
    let app = idle_app().await;
    let id = app.greeting().await;
    let vip = json!({ "status": "abandoned", "tags": "vip" });
    let mut tagged = recover(id);
    tagged["trigger"]["when"] = vip;
    let mut paused = recover(id);
    paused["external_id"] = json!("paused");
    paused["status"] = json!("paused");
    let mut renamed = recover(id);
    renamed["external_id"] = json!("renamed");
    for body in [&recover(id), &paused, &renamed] {
        app.automate(body).await;
    }
    // Nobody has evaluated this when they are saved anew.
    let mut before = checkout("before", "abandoned");
    before["tags"] = json!(["vip"]);
    app.post("checkouts", &before).await.expect(201);
    app.automate(&tagged).await;
    paused["status"] = json!("active");
    app.automate(&paused).await;
    // What does not say when it fires moves nothing.
    for (name, value) in [
        ("name", json!("Renamed")),
        ("reentry", json!("once_per_record")),
        ("status", json!("active")),
    ] {
        renamed[name] = value;
        app.automate(&renamed).await;
    }
    before["external_id"] = json!("after");
    app.post("checkouts", &before).await.expect(201);
    let working = app.another().await;
    assert_eq!(fired(&app, "recover").await, ["after"]);
    assert_eq!(fired(&app, "paused").await, ["after"]);
    assert_eq!(fired(&app, "renamed").await, ["before", "after"]);
    working.stop().await;
    app.stop().await;
}

#[tokio::test]
async fn of_changes_that_follow_each_other_closely_the_last_one_counts() {
    let app = idle_app().await;
    app.automate(&recover(app.greeting().await)).await;
    for key in ["A", "B", "C"] {
        app.post("checkouts", &checkout(key, "abandoned"))
            .await
            .expect(201);
    }
    app.patch("checkouts/A", &json!({ "status": "recovered" }))
        .await
        .expect(200);
    for tag in ["x", "y", "z"] {
        app.patch("checkouts/B", &json!({ "tags": [tag] }))
            .await
            .expect(200);
    }
    let working = app.another().await;
    // A is recovered; of B's four changes the last one fires, after the change of C.
    assert_eq!(fired(&app, "recover").await, ["C", "B"]);
    working.stop().await;
    app.stop().await;
}

#[tokio::test]
async fn every_automation_of_a_store_is_asked_and_those_of_other_stores_are_not() {
    let app = App::start().await;
    let id = app.greeting().await;
    let (other, key) = app.another_store(None).await;
    for name in ["a", "b"] {
        app.automate(&on_change(name, "checkouts", id)).await;
    }
    app.automate(&on_change("orders", "orders", id)).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let body = checkout("B", "abandoned");
    let path = format!("/api/v1/stores/{other}/checkouts");
    app.send(http::Method::POST, &path, &headers, body.to_string())
        .await
        .expect(201);
    app.post("checkouts", &body).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    assert_eq!(app.outcomes("b").await, ["sent"]);
    assert_eq!(app.outcomes("orders").await, [""; 0]);
    assert_eq!(app.count("automation_runs").await, 2);
    app.stop().await;
}

#[tokio::test]
async fn conditions_on_every_kind_of_member_choose_their_records() {
    let app = App::start().await;
    let id = app.greeting().await;
    let conditions = [
        ("price", json!({ "total_price": 12.5 })),
        ("tag", json!({ "tags": ["gold", "silver"] })),
        ("none", json!({ "currency": null })),
        ("both", json!({ "currency": "EUR", "tags": "gold" })),
        ("first", json!({ "version": 1 })),
    ];
    for (name, when) in &conditions {
        let mut body = on_change(name, "checkouts", id);
        body["trigger"]["when"] = when.clone();
        app.automate(&body).await;
    }
    let vary = |key: &str, price: &str, currency: Value, tags: &[&str]| {
        let mut body = checkout(key, "abandoned");
        body["total_price"] = json!(price);
        body["currency"] = currency;
        body["tags"] = json!(tags);
        body
    };
    for body in [
        vary("A", "12.5000", json!("EUR"), &["gold"]),
        vary("B", "12.51", Value::Null, &["golden", "silver"]),
        vary("C", "99", json!("GBP"), &[]),
    ] {
        app.post("checkouts", &body).await.expect(201);
    }
    app.evaluated().await;
    app.post(
        "checkouts",
        &vary("C", "12.50", json!("EUR"), &["x", "gold"]),
    )
    .await
    .expect(200);
    for (name, expected) in [
        ("price", &["A", "C"][..]),
        ("tag", &["A", "B", "C"]),
        ("none", &["B"]),
        ("both", &["A", "C"]),
        ("first", &["A", "B", "C"]),
    ] {
        assert_eq!(fired(&app, name).await, expected, "{name}");
    }
    app.stop().await;
}
