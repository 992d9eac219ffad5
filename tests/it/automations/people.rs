//! Whom a message goes to: customers, those of orders and checkouts, and shipments, whose order says
//! it.

use chrono::TimeDelta;
use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::on_change;
use crate::support::kinds::{Kind, kinds};
use crate::support::scale::eventually;

const ADA: &str = "+33612345678";
const GRACE: &str = "+447700900123";

fn kind(path: &str) -> Kind {
    let mut all = kinds().into_iter();
    all.find(|kind| kind.path == path).expect("it is known")
}

fn order(key: &str, phone: &str) -> Value {
    let mut body = kind("orders").first(key);
    body["customer"] = json!({ "phone": phone, "first_name": "Ada" });
    body
}

fn shipment(key: &str, order: &str) -> Value {
    let mut body = kind("shipments").first(key);
    body["order_external_id"] = json!(order);
    body
}

fn once(number: &str) -> Vec<(String, i64)> {
    vec![(number.to_owned(), 1)]
}

#[tokio::test]
async fn a_customer_gets_the_message_about_their_own_record() {
    let app = App::start().await;
    app.automate(&on_change("a", "customers", app.greeting().await))
        .await;
    let body = json!({ "external_id": "C", "phone": "06 12 34 56 78", "first_name": "Ada" });
    let refused = app.post("customers", &body).await;
    assert_eq!(refused.status, 422, "the store has no country");
    let body = json!({ "external_id": "C", "phone": ADA, "first_name": "Ada" });
    app.post("customers", &body).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    assert_eq!(app.messages_by_number().await, once(ADA));
    let run = app.runs("a").await[0].clone();
    assert_eq!(
        (&run["resource"], &run["external_id"]),
        (&json!("customers"), &json!("C"))
    );
    app.stop().await;
}

#[tokio::test]
async fn a_customer_whom_an_order_brings_or_changes_sets_automations_off() {
    let app = App::start().await;
    app.automate(&on_change("a", "customers", app.greeting().await))
        .await;
    app.post("orders", &order("O-1", ADA)).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["sent"], "a new one");
    // Nothing new about her.
    app.post("orders", &order("O-2", ADA)).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    let mut body = order("O-3", ADA);
    body["customer"]["last_name"] = json!("Lovelace");
    app.post("orders", &body).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["sent", "sent"]);
    assert_eq!(app.messages_by_number().await, [(ADA.to_owned(), 2)]);
    app.stop().await;
}

#[tokio::test]
async fn a_shipment_finds_its_recipient_through_its_order() {
    let app = App::start().await;
    app.automate(&on_change("a", "shipments", app.greeting().await))
        .await;
    app.post("orders", &order("O", GRACE)).await.expect(201);
    app.post("shipments", &shipment("S", "O")).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    assert_eq!(app.messages_by_number().await, once(GRACE));
    app.stop().await;
}

/// Waits until a run was looked at and waits for its recipient.
async fn is_looked_for(app: &App) {
    eventually("the recipient is looked for", || async {
        let code: Option<String> = sqlx::query_scalar(
            "select error_code from outbox where kind = 'run' and lease_until is null",
        )
        .fetch_optional(&app.pool)
        .await
        .expect("the outbox can be read")
        .flatten();
        (code.as_deref() == Some("recipient_unknown")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shipment_that_is_faster_than_its_order_waits_for_it() {
    let app = App::start().await;
    let mut body = on_change("a", "shipments", app.greeting().await);
    body["reentry"] = json!("once_per_record");
    app.automate(&body).await;
    app.post("shipments", &shipment("S", "O")).await.expect(201);
    is_looked_for(&app).await;
    assert_eq!(app.outcomes("a").await, ["scheduled"]);
    for _ in 0..3 {
        app.clock.advance(TimeDelta::minutes(1));
        assert_eq!(app.outcomes("a").await, ["scheduled"]);
    }
    app.post("orders", &order("O", GRACE)).await.expect(201);
    // It is looked for the less often the longer it has been waited for.
    app.clock.advance(TimeDelta::minutes(10));
    assert_eq!(app.outcomes("a").await, ["sent"]);
    assert_eq!(app.messages_by_number().await, once(GRACE));
    app.stop().await;
}

#[tokio::test]
async fn a_shipment_whose_order_never_comes_is_given_up_after_a_day() {
    let app = App::start().await;
    app.automate(&on_change("a", "shipments", app.greeting().await))
        .await;
    app.post("shipments", &shipment("S", "O")).await.expect(201);
    is_looked_for(&app).await;
    app.clock
        .advance(TimeDelta::hours(24) - TimeDelta::minutes(2));
    assert_eq!(app.outcomes("a").await, ["scheduled"]);
    app.clock.advance(TimeDelta::hours(1));
    assert_eq!(app.outcomes("a").await, ["failed recipient_unknown"]);
    app.post("orders", &order("O", GRACE)).await.expect(201);
    assert_eq!(app.outcomes("a").await, ["failed recipient_unknown"]);
    assert_eq!(app.count("messages").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_shipment_of_another_stores_order_waits_all_the_same() {
    let app = App::start().await;
    app.automate(&on_change("a", "shipments", app.greeting().await))
        .await;
    let (other, key) = app.another_store(None).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/api/v1/stores/{other}/orders");
    app.send(
        http::Method::POST,
        &path,
        &headers,
        order("O", GRACE).to_string(),
    )
    .await
    .expect(201);
    app.post("shipments", &shipment("S", "O")).await.expect(201);
    is_looked_for(&app).await;
    assert_eq!(app.outcomes("a").await, ["scheduled"]);
    app.stop().await;
}

#[tokio::test]
async fn a_number_in_the_spelling_of_the_stores_country_is_understood_by_a_webhook() {
    let app = App::start_with(|_| {}, Limits::default()).await;
    let (other, key) = app.another_store(Some("FR")).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let send = async |path: &str, body: Value| {
        let answer = app
            .send(http::Method::POST, path, &headers, body.to_string())
            .await;
        assert!(answer.status.is_success(), "{}", answer.text);
        answer.json()
    };
    let template = json!({ "name": "t", "language": "en", "body": "Hello" });
    let made = send(
        &format!("/api/v1/stores/{other}/message-templates"),
        template,
    )
    .await;
    let id = made["id"].as_i64().expect("an integer");
    let body = crate::support::automations::on_call("call", id);
    let saved = send(&format!("/api/v1/stores/{other}/automations"), body).await;
    let webhook = saved["webhook_id"].as_str().expect("an id");
    let call = json!({ "phone_number": "06 12 34 56 78" });
    let called = send(&format!("/api/v1/automations/{webhook}"), call).await;
    assert_eq!(called["triggered"], true);
    assert_eq!(app.messages_by_number().await, once(ADA));
    app.stop().await;
}
