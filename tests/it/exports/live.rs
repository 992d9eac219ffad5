//! Changes are sent as they happen: what is sent, in which order, from when on, and to whom.

use keyfold::config::Config;
use keyfold::edge::Limits;
use serde_json::json;

use crate::support::app::App;
use crate::support::exports::{calls, configure, export, order, start};
use crate::support::meta::Gate;
use crate::support::receiver::{Receiver, Says};
use crate::support::rows::texts;

#[tokio::test]
async fn what_was_there_before_is_not_sent_and_replays_send_nothing() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push("before", "1.00").await;
    app.export(&receiver, &json!({})).await;
    app.push("after", "1.00").await;
    calls(&receiver, 1).await;
    for _ in 0..3 {
        app.push("after", "1.00").await;
        app.push("before", "1.00").await;
    }
    app.exported().await;
    app.calls_have_come().await;
    let called: Vec<String> = receiver
        .calls()
        .iter()
        .map(|call| call.external_id())
        .collect();
    assert_eq!(called, ["after"]);
    app.stop().await;
}

#[tokio::test]
async fn a_manual_export_follows_nothing_and_begins_to_when_it_is_live() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    assert_eq!(app.count("event_consumers").await, 0);
    app.push("A", "1.00").await;
    app.post("exports", &export(&receiver, &json!({})))
        .await
        .expect(200);
    app.push("B", "1.00").await;
    let call = calls(&receiver, 1).await.remove(0);
    assert_eq!(call.external_id(), "B");
    let manual = export(&receiver, &json!({ "mode": "manual" }));
    app.post("exports", &manual).await.expect(200);
    app.push("C", "1.00").await;
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 1);
    assert_eq!(app.count("event_consumers").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_paused_export_collects_one_delivery_a_record_and_sends_the_newest_state() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({ "status": "paused" })).await;
    for total in ["1.00", "2.00", "3.00"] {
        app.push("A", total).await;
        app.push("B", total).await;
        app.exported().await;
    }
    let waiting = app.deliveries().await;
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(|one| one["state"] == "waiting"));
    assert_eq!(receiver.calls().len(), 0);
    app.post("exports", &export(&receiver, &json!({})))
        .await
        .expect(200);
    app.exported().await;
    let calls = receiver.calls();
    assert_eq!(calls.len(), 2);
    assert!(
        calls
            .iter()
            .all(|call| call.json()["total_price"] == "3.00")
    );
    assert_eq!(app.count("outbox").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_records_calls_come_one_after_the_other_with_the_newest_state() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({})).await;
    let gate = Gate::closed();
    let held = gate.clone();
    receiver.says(move |call| {
        if call.number == 0 {
            Says::After(held.clone())
        } else {
            Says::Status(200)
        }
    });
    app.push("A", "1.00").await;
    calls(&receiver, 1).await;
    for total in 2..10 {
        app.push("A", &format!("{total}.00")).await;
    }
    app.push("B", "1.00").await;
    // Another record doesn't wait for it.
    assert_eq!(calls(&receiver, 2).await[1].external_id(), "B");
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 2);
    gate.open();
    app.exported().await;
    let calls = receiver.calls();
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[2].json()["total_price"], "9.00");
    app.stop().await;
}

#[tokio::test]
async fn several_exports_and_resources_get_what_they_want() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(
        &receiver,
        &json!({ "url": receiver.url("one/{resource}/{id}") }),
    )
    .await;
    let more = json!({
        "external_id": "crm", "resources": ["customers", "shipments"],
        "url": receiver.url("two?r={resource}&x={external_id}")
    });
    app.export(&receiver, &more).await;
    app.push("A", "1.00").await;
    let walk_in = json!({ "phone": "+33698765432" });
    app.post("customers", &walk_in).await.expect(201);
    let shipment = json!({ "external_id": "S", "order_external_id": "A" });
    app.post("shipments", &shipment).await.expect(201);
    app.exported().await;
    let order_id = app.get("orders/A").await.json()["id"]
        .as_str()
        .map(str::to_owned);
    let mut targets: Vec<String> = receiver
        .calls()
        .into_iter()
        .map(|call| call.target)
        .collect();
    targets.sort();
    let expected = [
        format!("/one/orders/{}", order_id.expect("an id")),
        "/two?r=customers&x=%2B33698765432".to_owned(),
        "/two?r=customers&x=C-1".to_owned(),
        "/two?r=shipments&x=S".to_owned(),
    ];
    assert_eq!(targets, expected);
    let log = app.get("exports/crm/log").await.expect(200).json();
    let names: Vec<_> = (0..3)
        .map(|n| log["data"][n]["external_id"].clone())
        .collect();
    assert!(names.contains(&json!("C-1")), "looked up: {names:?}");
    app.stop().await;
}

#[tokio::test]
async fn an_erased_person_leaves_no_trace_and_receivers_are_told() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let all = json!(["orders", "customers"]);
    app.export(&receiver, &json!({ "resources": all })).await;
    let only_orders = json!({ "external_id": "o", "url": receiver.url("only/{external_id}") });
    app.export(&receiver, &only_orders).await;
    let none = json!({ "external_id": "s", "resources": ["shipments"] });
    app.export(&receiver, &none).await;
    let mut order = order("A", "1.00");
    order["customer"] = json!({
        "external_id": "canary-id", "phone": "+33612345678", "first_name": "Canary"
    });
    app.post("orders", &order).await.expect(201);
    app.exported().await;
    let run = app.run().await;
    app.completed(&run).await;
    let customer = app.get("customers/canary-id").await.expect(200).json();
    receiver.take_calls();
    app.delete("customers/canary-id").await.expect(204);
    let calls = calls(&receiver, 2).await;
    app.exported().await;
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 2);
    let mut targets: Vec<&str> = calls.iter().map(|call| call.target.as_str()).collect();
    targets.sort_unstable();
    let id = customer["id"].as_str().expect("an id");
    assert_eq!(targets, [format!("/customers/{id}"), format!("/only/{id}")]);
    for call in &calls {
        let notice = call.json();
        let expected = json!({
            "type": "customer.erased", "resource": "customers", "id": id,
            "store_id": app.store_id, "erased_at": notice["erased_at"],
        });
        assert_eq!(notice, expected);
    }
    for row in texts(&app.pool).await {
        let lower = row.to_lowercase();
        for sign in ["canary", "33612345678", "63616e617279"] {
            assert!(!lower.contains(sign), "{row}");
        }
    }
    let log = app.log().await;
    assert_eq!(
        log.len(),
        2,
        "the order, and that the person was erased: {log:?}"
    );
    // The order's content is another one without them, so a run sends it again.
    receiver.take_calls();
    assert_eq!(app.run_through().await, [1, 0, 0]);
    let order = receiver.take_calls().remove(0).json();
    assert_eq!(order["customer"], json!({ "id": id, "erased": true }));
    app.stop().await;
}

#[tokio::test]
async fn a_backlog_without_positions_is_neither_numbered_by_who_saves_nor_sent() {
    let receiver = Receiver::start().await;
    let idle = |config: &mut Config| {
        configure(config);
        config.works = false;
    };
    let app = App::start_with(idle, Limits::default()).await;
    app.push_many(2_500).await;
    app.export(&receiver, &json!({})).await;
    let numbered = "select count(*) from events where position is not null";
    let numbered: i64 = sqlx::query_scalar(numbered)
        .fetch_one(&app.pool)
        .await
        .expect("events");
    assert!(
        numbered <= 1_000,
        "{numbered} numbered while a caller waits"
    );
    app.push("A-00000", "11.00").await;
    app.push("new", "1.00").await;
    // Somebody who works comes, and goes through the backlog.
    let worker = App::start_on(app.database_url.clone(), configure, Limits::default()).await;
    worker.exported().await;
    worker.calls_have_come().await;
    let mut called: Vec<String> = receiver
        .calls()
        .iter()
        .map(|call| call.external_id())
        .collect();
    called.sort();
    assert_eq!(called, ["A-00000", "new"]);
    worker.stop().await;
    app.stop().await;
}
