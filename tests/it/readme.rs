//! The life of an order, as the README walks through it.

use http::Method;
use keyfold::engine::Resource as _;
use keyfold::resources::orders::Order;
use serde_json::json;

use crate::support::app::App;

#[tokio::test]
async fn the_life_of_an_order() {
    let app = App::start().await;
    let [mut order, _] = Order::examples();
    order["source_updated_at"] = json!("2026-01-15T09:31:00Z");
    let created = app.post("orders", &order).await.expect(201);
    assert_eq!(created.outcome(), "created");
    let replayed = app.post("orders", &order).await.expect(200);
    assert_eq!(replayed.outcome(), "unchanged");

    let change = json!({ "financial_status": "refunded" });
    let patched = app.patch("orders/A-1001", &change).await.expect(200);
    assert_eq!(patched.outcome(), "updated");
    order["source_updated_at"] = json!("2026-01-15T09:00:00Z");
    let late = app.post("orders", &order).await.expect(200);
    assert_eq!(late.outcome(), "stale");
    assert_eq!(late.json(), patched.json());

    let path = app.path("orders/A-1001");
    let stale_tag = [("if-match", "\"1\"")];
    let refused = app
        .send(Method::PATCH, &path, &stale_tag, change.to_string())
        .await;
    assert_eq!(refused.expect(412).code(), "precondition_failed");
    let bad = app.patch("orders/A-1001", &json!({ "tags": [1] })).await;
    assert_eq!(bad.expect(422).faulty(), ["tags.0"]);

    let read = app.get("orders/A-1001").await.expect(200);
    assert_eq!(read.header("etag"), "\"2\"");
    let page = app.get("orders?limit=10").await.expect(200).json();
    assert_eq!(page, json!({ "data": [read.json()], "next_cursor": null }));

    app.delete("customers/C-1001").await.expect(204);
    let order = app.get("orders/A-1001").await.expect(200).json();
    assert_eq!(order["customer"]["erased"], true);
    let events = app.events().await;
    let of = |resource: &str| -> Vec<_> {
        let events = events.iter().filter(|event| event["resource"] == resource);
        events.map(|event| event["type"].clone()).collect()
    };
    assert_eq!(of("orders"), ["order.created", "order.updated"]);
    assert_eq!(of("customers"), ["customer.created", "customer.erased"]);
    app.stop().await;
}
