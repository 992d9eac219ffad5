//! DELETE of a customer.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::with;
use crate::support::rows::{events_of, snapshot, texts};

const PHONE: &str = "+33612345678";
/// In every text that names the person.
const CANARY: &str = "canary";

/// A customer whose every member would give the person away.
fn person() -> Value {
    json!({
        "external_id": "C-canary", "phone": PHONE, "first_name": "Canary-first",
        "last_name": "Canary-last", "email": "canary@canary.example", "locale": "fr-FR",
        "tags": ["canary-tag"], "lifetime_value": 918_273, "orders_count": 564_738,
        "metadata": {"canary": {"deep": ["canary"]}}, "source_updated_at": "2026-01-01T00:00:00Z",
    })
}

fn order(key: &str, customer: &Value) -> Value {
    let mut customer = customer.clone();
    let members = customer.as_object_mut().expect("an object");
    members.retain(|name, _| !["metadata", "source_updated_at"].contains(&name.as_str()));
    json!({
        "external_id": key, "placed_at": "2026-01-01T00:00:00Z", "total_price": "10.00",
        "customer": customer,
    })
}

/// Rows that still hold something of the person.
async fn traces(app: &App) -> Vec<String> {
    let mut rows = texts(&app.pool).await;
    rows.retain(|row| {
        let row = row.to_lowercase();
        [CANARY, "33612345678", "918273", "564738"]
            .iter()
            .any(|text| row.contains(text))
    });
    rows
}

#[tokio::test]
async fn nothing_that_names_the_person_is_left_anywhere() {
    let app = App::start().await;
    let made = app.post("customers", &person()).await.expect(201).json();
    app.post("orders", &order("O", &person())).await.expect(201);
    let moved = with(&person(), "first_name", json!("Canary-second"));
    app.post("customers", &moved).await.expect(200);
    assert!(!app.events().await.is_empty(), "numbered and read before");
    assert!(!traces(&app).await.is_empty());
    let gone = app.delete("customers/C-canary").await.expect(204);
    assert_eq!(gone.text, "");
    assert_eq!(traces(&app).await, [""; 0]);

    let row: Value = sqlx::query_scalar("select to_jsonb(c) from customers c")
        .fetch_one(&app.pool)
        .await
        .expect("the tombstone stays");
    let mut row = row.as_object().expect("an object").clone();
    let ours = [
        "version",
        "replaced_version",
        "created_at",
        "updated_at",
        "erased_at",
    ];
    row.retain(|name, value| !ours.contains(&name.as_str()) && !value.is_null());
    let tombstone = json!({"store_id": app.store_id, "id": made["id"], "tags": [], "metadata": {}});
    assert_eq!(Value::Object(row), tombstone);
    let digests: i64 = sqlx::query_scalar("select count(customer_digest) from orders")
        .fetch_one(&app.pool)
        .await
        .expect("the orders can be read");
    assert_eq!((digests, app.count("customer_phones").await), (0, 0));

    let events = events_of(&app.pool, &made).await;
    assert_eq!(events.last(), Some(&("customer.erased".to_owned(), 3)));
    let told = app.events().await;
    let erased = told.last().expect("an event");
    assert_eq!(
        (&erased["type"], &erased["external_id"]),
        (&json!("customer.erased"), &Value::Null)
    );
    assert!(!json!(told).to_string().to_lowercase().contains(CANARY));
    app.stop().await;
}

#[tokio::test]
async fn an_erased_customer_is_in_no_answer_but_by_id_in_its_orders() {
    let app = App::start().await;
    let made = app.post("customers", &person()).await.expect(201).json();
    app.post("orders", &order("O", &person())).await.expect(201);
    app.delete("customers/C-canary").await.expect(204);
    app.get("customers/C-canary").await.expect(404);
    app.get("customers/%2B33612345678").await.expect(404);
    let empty = json!({"data": [], "next_cursor": null});
    assert_eq!(app.get("customers").await.json(), empty);
    let id = made["id"].as_str().expect("an id");
    assert_eq!(app.get(&format!("customers?id={id}")).await.json(), empty);
    let order = app.get("orders/O").await.expect(200).json();
    assert_eq!(order["customer"], json!({"id": id, "erased": true}));
    assert_eq!(app.get("orders").await.json()["data"], json!([order]));
    let narrowed = app
        .get("orders?customer_external_id=C-canary")
        .await
        .expect(200);
    assert_eq!(narrowed.json(), empty);
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_or_already_erased_customer_is_204_and_nothing_happens() {
    let app = App::start().await;
    app.post("customers", &person()).await.expect(201);
    app.delete("customers/C-canary").await.expect(204);
    let before = snapshot(&app.pool).await;
    let long = "x".repeat(300);
    for key in [
        "C-canary",
        "nobody",
        "%2B33612345678",
        "%2B33699999999",
        "%00",
        &long,
        "bulk",
    ] {
        app.delete(&format!("customers/{key}")).await.expect(204);
    }
    assert_eq!(snapshot(&app.pool).await, before);
    app.delete("customers/%").await.expect(400);
    app.delete("customers/x?nonsense=1").await.expect(400);
    for path in ["orders/O", "checkouts/B", "shipments/S", "customers"] {
        assert_eq!(
            app.delete(path).await.expect(405).code(),
            "method_not_allowed"
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn a_customer_without_external_id_is_erased_by_phone_and_one_with_is_not() {
    let app = App::start().await;
    app.post("customers", &person()).await.expect(201);
    app.delete("customers/%2B33612345678").await.expect(204);
    app.get("customers/C-canary").await.expect(200);
    app.post("customers", &json!({"phone": "+33611111111"}))
        .await
        .expect(201);
    app.delete("customers/%2B33611111111").await.expect(204);
    app.get("customers/%2B33611111111").await.expect(404);
    assert_eq!(
        app.get("customers").await.json()["data"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_phone_that_somebody_else_has_as_well_stays_known() {
    let app = App::start().await;
    app.post("customers", &person()).await.expect(201);
    let other = json!({"external_id": "other", "phone": PHONE});
    let other = app.post("customers", &other).await.expect(201).json();
    app.delete("customers/C-canary").await.expect(204);
    // The rows that lock phones never outlive their transaction.
    assert_eq!(app.count("customer_phones").await, 0);
    let found = app
        .post("customers", &json!({"phone": PHONE}))
        .await
        .expect(200)
        .json();
    assert_eq!(found["id"], other["id"]);
    let left = traces(&app).await;
    assert!(!left.is_empty() && left.iter().all(|row| !row.to_lowercase().contains(CANARY)));
    app.delete("customers/other").await.expect(204);
    assert_eq!(traces(&app).await, [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn no_order_brings_an_erased_customer_back() {
    let app = App::start().await;
    let sent = order("O", &person());
    let made = app.post("orders", &sent).await.expect(201).json();
    let gone = json!({"id": made["customer"]["id"], "erased": true});
    app.delete("customers/C-canary").await.expect(204);
    let before = snapshot(&app.pool).await;
    let replay = app.post("orders", &sent).await.expect(200);
    assert_eq!(
        (replay.outcome(), &replay.json()["customer"]),
        ("unchanged", &gone)
    );
    assert_eq!(snapshot(&app.pool).await, before);
    // Not a changed order, nor one with news of the same person.
    let changed = with(&sent, "total_price", json!("11.00"));
    let answer = app.post("orders", &changed).await.expect(200);
    assert_eq!(
        (answer.outcome(), &answer.json()["customer"]),
        ("updated", &gone)
    );
    let mut news = with(&changed, "tags", json!(["x"]));
    news["customer"]["last_name"] = json!("Canary-third");
    let answer = app.post("orders", &news).await.expect(200);
    assert_eq!(
        (answer.outcome(), &answer.json()["customer"]),
        ("updated", &gone)
    );
    let answer = app
        .patch("orders/O", &json!({"tags": []}))
        .await
        .expect(200);
    assert_eq!(answer.json()["customer"], gone);
    assert_eq!(app.count("customers").await, 1);
    assert_eq!(traces(&app).await, [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn a_new_order_of_an_erased_customer_makes_a_new_one() {
    let app = App::start().await;
    let first = app
        .post("orders", &order("O1", &person()))
        .await
        .expect(201)
        .json();
    app.delete("customers/C-canary").await.expect(204);
    let second = app
        .post("orders", &order("O2", &person()))
        .await
        .expect(201)
        .json();
    assert_ne!(second["customer"]["id"], first["customer"]["id"]);
    assert_eq!(second["customer"]["external_id"], "C-canary");
    let old = app.get("orders/O1").await.expect(200).json();
    assert_eq!(old["customer"]["erased"], true);
    let narrowed = app
        .get("orders?customer_external_id=C-canary")
        .await
        .expect(200)
        .json();
    assert_eq!(narrowed["data"], json!([second]));
    app.stop().await;
}

#[tokio::test]
async fn the_same_external_id_pushed_later_is_a_new_customer() {
    let app = App::start().await;
    let old = app.post("customers", &person()).await.expect(201).json();
    app.delete("customers/C-canary").await.expect(204);
    let late = with(
        &person(),
        "source_updated_at",
        json!("2001-01-01T00:00:00Z"),
    );
    let new = app.post("customers", &late).await.expect(201);
    assert_eq!(
        (new.outcome(), &new.json()["version"]),
        ("created", &json!(1))
    );
    assert_ne!(new.json()["id"], old["id"]);
    assert_eq!(app.get("customers/C-canary").await.text, new.text);
    assert_eq!(
        events_of(&app.pool, &new.json()).await,
        [("customer.created".to_owned(), 1)]
    );
    // And that one can be erased again.
    app.delete("customers/C-canary").await.expect(204);
    assert_eq!(traces(&app).await, [""; 0]);
    assert_eq!(app.count("customers").await, 2);
    app.stop().await;
}

#[tokio::test]
async fn another_store_keeps_its_own_customer() {
    let app = App::start().await;
    let (_, store_id, key) = crate::support::app::tenant(&app.pool, &app.clock, "Other").await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/api/v1/stores/{store_id}/customers");
    app.post("customers", &person()).await.expect(201);
    let body = person().to_string();
    let theirs = app
        .send(http::Method::POST, &path, &headers, body)
        .await
        .expect(201);
    app.delete("customers/C-canary").await.expect(204);
    let one = format!("{path}/C-canary");
    let found = app
        .send(http::Method::GET, &one, &headers, "")
        .await
        .expect(200);
    assert_eq!(found.text, theirs.text);
    // The rows that lock phones never outlive their transaction.
    assert_eq!(app.count("customer_phones").await, 0);
    app.stop().await;
}
