//! The customer inside an order or a checkout.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::with;
use crate::support::rows::{events_of, snapshot};

const PHONE: &str = "+33612345678";

/// An order with this customer.
fn order(key: &str, customer: Value) -> Value {
    json!({
        "external_id": key, "placed_at": "2026-01-01T00:00:00Z", "total_price": "10.00",
        "customer": customer,
    })
}

fn full() -> Value {
    json!({
        "external_id": "C", "phone": PHONE, "first_name": "Camille", "last_name": "Martin",
        "email": "camille@example.com", "locale": "fr-FR", "tags": ["vip"],
        "lifetime_value": 100, "orders_count": 2, "metadata": {"level": 3},
    })
}

async fn customer(app: &App, key: &str) -> Value {
    app.get(&format!("customers/{key}"))
        .await
        .expect(200)
        .json()
}

#[tokio::test]
async fn an_order_makes_its_customer_in_the_same_transaction() {
    let app = App::start().await;
    let made = app
        .post(
            "orders",
            &order("O", json!({"phone": PHONE, "external_id": "C"})),
        )
        .await;
    let made = made.expect(201).json();
    let stored = customer(&app, "C").await;
    assert_eq!(
        (&stored["id"], &stored["version"]),
        (&made["customer"]["id"], &json!(1))
    );
    assert_eq!(stored["source_updated_at"], Value::Null);
    assert_eq!(
        events_of(&app.pool, &stored).await,
        [("customer.created".to_owned(), 1)]
    );
    let transactions: i64 = sqlx::query_scalar(
        "select count(distinct xmin::text) from (
            select xmin from orders union all select xmin from customers union all select xmin from events
        ) as rows",
    )
    .fetch_one(&app.pool)
    .await
    .expect("the rows can be read");
    assert_eq!(transactions, 1);
    app.stop().await;
}

#[tokio::test]
async fn what_the_order_leaves_out_or_sends_as_null_stays() {
    let app = App::start().await;
    let before = app.post("customers", &full()).await.expect(201).json();
    let mut nulls = json!({"external_id": "C", "phone": PHONE});
    for name in [
        "first_name",
        "last_name",
        "email",
        "locale",
        "tags",
        "lifetime_value",
        "orders_count",
    ] {
        nulls[name] = Value::Null;
    }
    let bare = json!({"external_id": "C", "phone": PHONE});
    for (key, sent) in [("bare", bare), ("nulls", nulls)] {
        let answer = app
            .post("orders", &order(key, sent))
            .await
            .expect(201)
            .json();
        assert_eq!(answer["customer"]["first_name"], "Camille");
        assert_eq!(answer["customer"]["tags"], json!(["vip"]));
        assert_eq!(customer(&app, "C").await, before, "{key}");
    }
    assert!(
        app.events()
            .await
            .iter()
            .all(|event| event["type"] != "customer.updated")
    );
    let news =
        json!({"external_id": "C", "phone": PHONE, "last_name": "Durand", "orders_count": 3});
    app.post("checkouts", &json!({
        "external_id": "B", "abandoned_at": "2026-01-01T00:00:00Z", "total_price": 1, "customer": news,
    }))
    .await
    .expect(201);
    let mut expected = before.clone();
    let merged = customer(&app, "C").await;
    expected["last_name"] = json!("Durand");
    expected["orders_count"] = json!(3);
    expected["version"] = json!(2);
    expected["updated_at"] = merged["updated_at"].clone();
    assert_eq!(merged, expected);
    app.stop().await;
}

#[tokio::test]
async fn tags_replace_the_stored_ones_and_an_empty_list_clears_them() {
    let app = App::start().await;
    app.post("customers", &full()).await.expect(201);
    for (key, tags) in [("one", json!(["new", "tags"])), ("none", json!([]))] {
        let sent = json!({"external_id": "C", "phone": PHONE, "tags": tags});
        let answer = app
            .post("orders", &order(key, sent))
            .await
            .expect(201)
            .json();
        assert_eq!(answer["customer"]["tags"], tags);
        assert_eq!(customer(&app, "C").await["tags"], tags);
    }
    app.stop().await;
}

#[tokio::test]
async fn free_data_is_no_member_of_a_carried_customer() {
    let app = App::start().await;
    for member in ["metadata", "source_updated_at", "id"] {
        let sent = with(&json!({"phone": PHONE}), member, json!({}));
        let answer = app.post("orders", &order("O", sent)).await.expect(422);
        assert_eq!(answer.faulty(), [format!("customer.{member}")]);
    }
    let answer = app
        .post("orders", &order("O", json!({"external_id": "C"})))
        .await
        .expect(422);
    assert_eq!(answer.faulty(), ["customer.phone"]);
    assert_eq!(app.count("customers").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_replayed_or_stale_order_does_not_look_at_its_customer() {
    let app = App::start().await;
    let sent = with(
        &order(
            "O",
            json!({"external_id": "C", "phone": PHONE, "first_name": "Camille"}),
        ),
        "source_updated_at",
        json!("2026-02-02T00:00:00Z"),
    );
    app.post("orders", &sent).await.expect(201);
    let direct = json!({"external_id": "C", "phone": PHONE, "first_name": "Alex"});
    app.post("customers", &direct).await.expect(200);
    let before = snapshot(&app.pool).await;
    let replay = app.post("orders", &sent).await.expect(200);
    assert_eq!(replay.outcome(), "unchanged");
    assert_eq!(replay.json()["customer"]["first_name"], "Alex", "as stored");
    let mut late = with(&sent, "source_updated_at", json!("2026-02-01T00:00:00Z"));
    late["customer"]["first_name"] = json!("Late");
    assert_eq!(
        app.post("orders", &late).await.expect(200).outcome(),
        "stale"
    );
    assert_eq!(snapshot(&app.pool).await, before);
    app.stop().await;
}

#[tokio::test]
async fn a_changed_order_with_the_same_customer_does_not_merge_it_again() {
    let app = App::start().await;
    let carried = json!({"external_id": "C", "phone": PHONE, "first_name": "Camille"});
    app.post("orders", &order("O", carried.clone()))
        .await
        .expect(201);
    let direct = json!({"external_id": "C", "phone": PHONE, "first_name": "Alex"});
    let direct = app.post("customers", &direct).await.expect(200).json();
    let changed = with(&order("O", carried.clone()), "total_price", json!("11.00"));
    let answer = app.post("orders", &changed).await.expect(200);
    assert_eq!(answer.outcome(), "updated");
    assert_eq!(answer.json()["customer"]["first_name"], "Alex");
    assert_eq!(customer(&app, "C").await, direct);
    // A PATCH carries no customer at all.
    app.patch("orders/O", &json!({"tags": ["x"]}))
        .await
        .expect(200);
    assert_eq!(customer(&app, "C").await, direct);
    // A new digest merges.
    let news = with(
        &changed,
        "customer",
        with(&carried, "last_name", json!("Martin")),
    );
    app.post("orders", &news).await.expect(200);
    let merged = customer(&app, "C").await;
    assert_eq!(
        (&merged["first_name"], &merged["last_name"]),
        (&json!("Camille"), &json!("Martin"))
    );
    app.stop().await;
}

#[tokio::test]
async fn the_merge_is_skipped_when_the_customer_was_changed_later_than_the_order() {
    let app = App::start().await;
    let known = with(&full(), "source_updated_at", json!("2026-02-02T00:00:00Z"));
    let known = app.post("customers", &known).await.expect(201).json();
    let sent = json!({"external_id": "C", "phone": PHONE, "first_name": "Old"});
    let at = |key: &str, time: Option<&str>| {
        with(&order(key, sent.clone()), "source_updated_at", json!(time))
    };
    let older = app
        .post("orders", &at("older", Some("2026-02-01T00:00:00Z")))
        .await
        .expect(201);
    assert_eq!(older.json()["customer"]["id"], known["id"]);
    assert_eq!(older.json()["customer"]["first_name"], "Camille");
    assert_eq!(customer(&app, "C").await, known);
    // As late as the customer is not older, nor is an order without a time.
    app.post("orders", &at("same", Some("2026-02-02T00:00:00Z")))
        .await
        .expect(201);
    let merged = customer(&app, "C").await;
    assert_eq!(merged["first_name"], "Old");
    assert_eq!(
        merged["source_updated_at"], known["source_updated_at"],
        "an order's time is not the customer's"
    );
    app.post("customers", &full()).await.expect(200);
    app.post("orders", &at("timeless", None)).await.expect(201);
    assert_eq!(customer(&app, "C").await["first_name"], "Old");
    app.stop().await;
}

#[tokio::test]
async fn an_order_never_fails_because_of_whose_phone_it_is() {
    let app = App::start().await;
    let carried = |key: &str| json!({"external_id": key, "phone": PHONE});
    let first = app
        .post("orders", &order("O1", carried("A")))
        .await
        .expect(201)
        .json();
    let second = app
        .post("orders", &order("O2", carried("B")))
        .await
        .expect(201)
        .json();
    assert_ne!(first["customer"]["id"], second["customer"]["id"]);
    let alone = app
        .post("orders", &order("O3", json!({"phone": PHONE})))
        .await
        .expect(201)
        .json();
    assert_eq!(
        alone["customer"]["id"], first["customer"]["id"],
        "the oldest with that phone"
    );
    assert_eq!(alone["customer"]["external_id"], "A");
    app.stop().await;
}

#[tokio::test]
async fn an_order_lets_a_customer_adopt_its_external_id() {
    let app = App::start().await;
    let bare = app
        .post("orders", &order("O1", json!({"phone": PHONE})))
        .await
        .expect(201)
        .json();
    let named = json!({"phone": PHONE, "external_id": "C"});
    let named = app
        .post("orders", &order("O2", named))
        .await
        .expect(201)
        .json();
    assert_eq!(named["customer"]["id"], bare["customer"]["id"]);
    assert_eq!(named["customer"]["external_id"], "C");
    let first = app.get("orders/O1").await.expect(200).json();
    assert_eq!(
        first["customer"], named["customer"],
        "one record, seen from both"
    );
    assert_eq!(app.count("customers").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn orders_of_one_document_with_one_customer_make_one_version_of_it() {
    let app = App::start().await;
    let items: Vec<Value> = (0..20)
        .map(|at| {
            order(
                &format!("O{at}"),
                json!({"phone": PHONE, "external_id": "C", "orders_count": at}),
            )
        })
        .collect();
    let answer = app
        .post("orders/bulk", &json!({ "items": items }))
        .await
        .expect(200)
        .json();
    assert_eq!(answer["summary"]["created"], 20);
    let stored = customer(&app, "C").await;
    assert_eq!(
        (&stored["orders_count"], &stored["version"]),
        (&json!(19), &json!(1))
    );
    assert_eq!(events_of(&app.pool, &stored).await.len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_shipment_finds_its_order_once_that_has_come() {
    let app = App::start().await;
    let shipment = json!({"external_id": "S", "order_external_id": "O"});
    let early = app.post("shipments", &shipment).await.expect(201).json();
    assert_eq!(early["order_id"], Value::Null);
    let order = app
        .post("orders", &order("O", json!({"phone": PHONE})))
        .await
        .expect(201)
        .json();
    let before = snapshot(&app.pool).await;
    let found = app.get("shipments/S").await.expect(200).json();
    assert_eq!(
        (&found["order_id"], &found["version"]),
        (&order["id"], &json!(1))
    );
    let listed = app.get("shipments").await.expect(200).json();
    assert_eq!(listed["data"][0], found);
    let replay = app.post("shipments", &shipment).await.expect(200);
    assert_eq!((replay.outcome(), replay.json()), ("unchanged", found));
    assert_eq!(snapshot(&app.pool).await, before);
    app.stop().await;
}
