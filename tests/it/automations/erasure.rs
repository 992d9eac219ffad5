//! DELETE of a customer, as far as automations go: nothing names the person any more.

use chrono::TimeDelta;
use keyfold::automations::runs;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout_of, on_call, on_change, outcome};
use crate::support::messaging::PHONE;
use crate::support::rows::texts;

/// In every text that names the person.
const CANARY: &str = "Canary";
const DELAY: TimeDelta = TimeDelta::seconds(3_600);
const OTHER: &str = "+33612345679";

/// As Postgres shows bytes.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows that still hold something of the person: text, bytes, or the digest of their number.
async fn traces(app: &App) -> Vec<String> {
    let digits = PHONE.trim_start_matches('+');
    let lower = CANARY.to_lowercase();
    let signs = [
        lower.clone(),
        digits.to_owned(),
        hex(CANARY.as_bytes()),
        hex(lower.as_bytes()),
        hex(digits.as_bytes()),
        hex(&runs::contact(app.store_id, PHONE)),
    ];
    let mut rows = texts(&app.pool).await;
    rows.retain(|row| {
        let row = row.to_lowercase();
        signs.iter().any(|sign| row.contains(sign))
    });
    rows
}

fn customer(external_id: &str, phone: &str) -> Value {
    json!({ "external_id": external_id, "phone": phone, "first_name": "Canary-name" })
}

async fn erase(app: &App, external_id: &str) {
    app.delete(&format!("customers/{external_id}"))
        .await
        .expect(204);
}

/// Automations with and without a delay on people, their checkouts, their orders and on calls.
async fn automate(app: &App) -> [Value; 2] {
    let id = app.template("hello", "Hello {{name}}").await;
    let mut calls = Vec::new();
    for (when, delay) in [("now", 0), ("later", 3_600)] {
        for (resource, pointer) in [
            ("customers", "/first_name"),
            ("checkouts", "/customer/first_name"),
            ("orders", "/customer/first_name"),
        ] {
            let mut body = on_change(&format!("{resource}-{when}"), resource, id);
            body["delay_seconds"] = json!(delay);
            body["reentry"] = json!({ "cooldown_seconds": 60 });
            body["action"]["send_template"]["variables"] = json!({ "name": pointer });
            app.automate(&body).await;
        }
        let mut body = on_call(&format!("call-{when}"), id);
        body["delay_seconds"] = json!(delay);
        calls.push(app.automate(&body).await);
    }
    calls.try_into().expect("two")
}

/// Sets everything off for somebody.
async fn set_off(app: &App, calls: &[Value; 2], external_id: &str, phone: &str) {
    app.post("customers", &customer(external_id, phone))
        .await
        .expect(201);
    app.at_rest().await;
    // A name that its caller gave to a record is the record's, and stays.
    let initial = external_id.chars().next().expect("not empty");
    let mut cart = checkout_of(phone, &format!("cart-{initial}"), "abandoned");
    cart["customer"]["first_name"] = json!("Canary-cart");
    cart["customer"]["external_id"] = json!(external_id);
    app.post("checkouts", &cart).await.expect(201);
    app.at_rest().await;
    let order = json!({
        "external_id": cart["external_id"], "placed_at": "2026-01-31T12:00:00Z",
        "total_price": "1", "customer": cart["customer"],
    });
    app.post("orders", &order).await.expect(201);
    app.at_rest().await;
    for call in calls {
        let body = json!({
            "phone_number": phone, "external_id": format!("{external_id}-occasion"),
            "variables": { "name": "Canary-variable" },
        });
        app.call(call, &body).await.expect(200);
    }
    app.at_rest().await;
}

/// Runs by their automation and what became of them.
async fn told(app: &App) -> Vec<String> {
    let mut told = Vec::new();
    for automation in [
        "customers-now",
        "customers-later",
        "checkouts-now",
        "checkouts-later",
        "orders-now",
        "orders-later",
        "call-now",
        "call-later",
    ] {
        for run in app.runs(automation).await {
            told.push(format!("{automation} {}", outcome(&run)));
        }
    }
    told
}

#[tokio::test]
async fn nothing_that_names_the_person_is_left_of_runs_that_wait_were_sent_or_skipped() {
    let app = App::start().await;
    let calls = automate(&app).await;
    set_off(&app, &calls, "Canary", PHONE).await;
    let before = told(&app).await;
    for (name, count) in [("sent", 4), ("scheduled", 4)] {
        let found = before.iter().filter(|run| run.ends_with(name)).count();
        assert!(found >= count, "{name}: {before:?}");
    }
    let rows = traces(&app).await;
    for sign in ["automation_runs ", "messages ", "customers "] {
        let found = rows.iter().any(|row| row.starts_with(sign));
        assert!(found, "the signs are the right ones: {sign}");
    }
    erase(&app, "Canary").await;
    assert_eq!(traces(&app).await, [""; 0]);
    for (before, after) in before.iter().zip(told(&app).await) {
        let expected = before.replace("scheduled", "skipped recipient_erased");
        assert_eq!(after, expected, "that there were some stays");
    }
    // Nothing is sent when their time comes, and nothing comes back.
    let messages = app.count("messages").await;
    app.clock.advance(DELAY);
    app.at_rest().await;
    assert_eq!(app.count("messages").await, messages);
    assert_eq!(app.count("outbox").await, 0);
    assert_eq!(traces(&app).await, [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn somebody_who_was_only_called_for_is_erased_by_their_number() {
    let app = App::start().await;
    let calls = automate(&app).await;
    for call in &calls {
        let body = json!({
            "phone_number": PHONE, "external_id": "Canary-occasion",
            "variables": { "name": "Canary-variable" },
        });
        app.call(call, &body).await.expect(200);
    }
    app.at_rest().await;
    assert!(!traces(&app).await.is_empty());
    app.delete("customers/%2B33612345678").await.expect(204);
    assert_eq!(traces(&app).await, [""; 0]);
    let told = told(&app).await;
    assert_eq!(
        told,
        ["call-now sent", "call-later skipped recipient_erased"]
    );
    app.stop().await;
}

#[tokio::test]
async fn while_another_record_has_the_number_what_is_about_the_number_stays() {
    let app = App::start().await;
    let calls = automate(&app).await;
    set_off(&app, &calls, "C", PHONE).await;
    app.post("customers", &customer("D", PHONE))
        .await
        .expect(201);
    app.at_rest().await;
    let own = |runs: &[String]| -> Vec<String> {
        let mut own = runs.to_vec();
        own.retain(|run| run.starts_with("call"));
        own
    };
    let before = told(&app).await;
    erase(&app, "C").await;
    assert_eq!(own(&told(&app).await), own(&before));
    app.clock.advance(DELAY);
    app.at_rest().await;
    // The number is called for, and D's own record is there; C's is not, nor are C's cart and order.
    let mut after = told(&app).await;
    after.sort();
    assert!(after.contains(&"call-later sent".to_owned()), "{after:?}");
    for gone in ["checkouts-later", "orders-later"] {
        assert!(
            after.contains(&format!("{gone} skipped recipient_erased")),
            "{after:?}"
        );
    }
    assert!(
        after.iter().all(|run| !run.ends_with("scheduled")),
        "{after:?}"
    );
    erase(&app, "D").await;
    assert_eq!(traces(&app).await, [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn people_with_other_numbers_keep_their_runs() {
    let app = App::start().await;
    let calls = automate(&app).await;
    set_off(&app, &calls, "N", OTHER).await;
    let before = told(&app).await;
    set_off(&app, &calls, "C", PHONE).await;
    erase(&app, "C").await;
    app.clock.advance(DELAY);
    app.at_rest().await;
    let messages = app.messages_by_number().await;
    let theirs = messages.iter().find(|(number, _)| number == OTHER);
    let all = i64::try_from(before.iter().filter(|run| !run.contains("skipped")).count());
    assert_eq!(theirs.map(|(_, count)| *count), all.ok(), "{before:?}");
    app.stop().await;
}

#[tokio::test]
async fn whoever_comes_back_after_the_erasure_is_somebody_new() {
    let app = App::start().await;
    let id = app.greeting().await;
    let mut body = on_change("a", "checkouts", id);
    body["reentry"] = json!({ "cooldown_seconds": 3_600 });
    app.automate(&body).await;
    let call = app.automate(&on_call("call", id)).await;
    let once = json!({ "phone_number": PHONE, "external_id": "x" });
    app.post("customers", &customer("C", PHONE))
        .await
        .expect(201);
    app.post("checkouts", &checkout_of(PHONE, "A", "abandoned"))
        .await
        .expect(201);
    app.call(&call, &once).await.expect(200);
    app.at_rest().await;
    erase(&app, "C").await;
    app.post("checkouts", &checkout_of(PHONE, "B", "abandoned"))
        .await
        .expect(201);
    assert_eq!(app.outcomes("a").await, ["sent", "sent"]);
    let other = json!({ "phone_number": PHONE, "external_id": "y" });
    let called = app.call(&call, &other).await.expect(200);
    assert_eq!(called.json()["triggered"], true);
    // The occasion itself stays used, though nobody knows any more for whom.
    let again = app.call(&call, &once).await.expect(200);
    assert_eq!(again.json()["run_id"], app.runs("call").await[0]["run_id"]);
    app.stop().await;
}
