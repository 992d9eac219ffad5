//! Runs that learn only at their end whom they are about.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout_of, on_change};
use crate::support::held::Held;
use crate::support::kinds::kinds;
use crate::support::load::somebody_waits;
use crate::support::scale::eventually;

const ADA: &str = "+33612345678";
const GRACE: &str = "+33612345679";

async fn order_and_automation(app: &App) {
    let mut body = on_change("a", "shipments", app.greeting().await);
    body["reentry"] = json!({ "cooldown_seconds": 3_600 });
    app.automate(&body).await;
    let mut kinds = kinds().into_iter();
    let orders = kinds.find(|kind| kind.path == "orders").expect("known");
    app.post("orders", &orders.first("O")).await.expect(201);
}

fn shipment(n: usize) -> Value {
    let mut kinds = kinds().into_iter();
    let shipments = kinds.find(|kind| kind.path == "shipments").expect("known");
    let mut body = shipments.first(&format!("S-{n}"));
    body["order_external_id"] = json!("O");
    body
}

#[tokio::test]
async fn shipments_of_one_contact_share_a_cooldown() {
    let app = App::start().await;
    order_and_automation(&app).await;
    let items: Vec<Value> = (0..20).map(shipment).collect();
    app.post("shipments/bulk", &json!({ "items": items }))
        .await
        .expect(200);
    let outcomes = app.outcomes("a").await;
    let sent = outcomes.iter().filter(|outcome| *outcome == "sent");
    let skipped = outcomes
        .iter()
        .filter(|outcome| *outcome == "skipped reentry");
    assert_eq!((sent.count(), skipped.count()), (1, 19));
    app.clock.advance(TimeDelta::seconds(3_600));
    app.post("shipments", &shipment(20)).await.expect(201);
    assert_eq!(
        app.outcomes("a").await.last().map(String::as_str),
        Some("sent")
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shipments_of_one_contact_share_a_cooldown_though_they_are_sent_at_once() {
    let app = App::start().await;
    order_and_automation(&app).await;
    let held = Held::at_insert_into(&app, "messages").await;
    app.post("shipments", &shipment(0)).await.expect(201);
    Held::holds_one(&app).await;
    app.post("shipments", &shipment(1)).await.expect(201);
    eventually("the second one waits for the first", || async {
        somebody_waits(&app.pool).await.then_some(())
    })
    .await;
    held.end().await;
    assert_eq!(app.outcomes("a").await, ["sent", "skipped reentry"]);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_cooldown_is_that_of_the_number_that_a_message_goes_to() {
    let app = App::start().await;
    let mut body = on_change("a", "checkouts", app.greeting().await);
    body["reentry"] = json!({ "cooldown_seconds": 3_600 });
    body["delay_seconds"] = json!(600);
    app.automate(&body).await;
    let mut first = checkout_of(ADA, "A", "abandoned");
    first["customer"]["external_id"] = json!("C");
    app.post("checkouts", &first).await.expect(201);
    app.post("checkouts", &checkout_of(GRACE, "B", "abandoned"))
        .await
        .expect(201);
    app.evaluated().await;
    // Meanwhile the first one's person has the number of the second.
    let moved = json!({ "external_id": "C", "phone": GRACE, "first_name": "Ada" });
    app.post("customers", &moved).await.expect(200);
    app.clock.advance(TimeDelta::seconds(600));
    let mut outcomes = app.outcomes("a").await;
    outcomes.sort();
    assert_eq!(outcomes.len(), 2);
    let numbers = app.messages_by_number().await;
    assert_eq!(numbers, [(GRACE.to_owned(), 1)], "{outcomes:?}");
    app.stop().await;
}
