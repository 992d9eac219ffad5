//! The rules by which a push finds its customer.

use keyfold::tenancy::{self, NewStore};
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::rows::{events_of, snapshot};

const PHONE: &str = "+33612345678";

/// Pushes a customer; gives status, outcome and record.
async fn push(app: &App, body: Value) -> (u16, String, Value) {
    let answer = app.post("customers", &body).await;
    let outcome = answer.outcome().to_owned();
    (answer.status.as_u16(), outcome, answer.json())
}

#[tokio::test]
async fn an_external_id_names_its_record_whatever_the_phone() {
    let app = App::start().await;
    let (status, _, first) = push(&app, json!({"external_id": "A", "phone": PHONE})).await;
    assert_eq!(status, 201);
    let moved = json!({"external_id": "A", "phone": "+33699999999"});
    let (status, outcome, record) = push(&app, moved).await;
    assert_eq!(
        (status, outcome.as_str(), &record["id"]),
        (200, "updated", &first["id"])
    );
    assert_eq!(record["phone"], "+33699999999");
    // The phone that it left is nobody's now.
    let (status, _, other) = push(&app, json!({"phone": PHONE})).await;
    assert_eq!(status, 201);
    assert_ne!(other["id"], first["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_record_without_external_id_adopts_the_first_one_that_comes_with_its_phone() {
    let app = App::start().await;
    let (status, _, bare) = push(&app, json!({"phone": PHONE, "first_name": "Camille"})).await;
    assert_eq!((status, &bare["external_id"]), (201, &Value::Null));
    let named = json!({"phone": PHONE, "external_id": "A", "first_name": "Camille"});
    let (status, outcome, adopted) = push(&app, named.clone()).await;
    assert_eq!((status, outcome.as_str()), (200, "updated"));
    assert_eq!(
        (&adopted["id"], &adopted["external_id"]),
        (&bare["id"], &json!("A"))
    );
    let events = [
        ("customer.created".to_owned(), 1),
        ("customer.updated".to_owned(), 2),
    ];
    assert_eq!(events_of(&app.pool, &bare).await, events);
    let (_, outcome, _) = push(&app, named).await;
    assert_eq!(outcome, "unchanged");
    // The next external id finds no record without one.
    let (status, _, second) = push(&app, json!({"phone": PHONE, "external_id": "B"})).await;
    assert_eq!(status, 201);
    assert_ne!(second["id"], bare["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_known_external_id_does_not_adopt_a_second_record() {
    let app = App::start().await;
    let (_, _, named) = push(&app, json!({"phone": "+33611111111", "external_id": "A"})).await;
    let (_, _, bare) = push(&app, json!({"phone": PHONE})).await;
    let (status, _, moved) = push(&app, json!({"phone": PHONE, "external_id": "A"})).await;
    assert_eq!((status, &moved["id"]), (200, &named["id"]));
    // Both share the phone now, and the one without external id goes on being found by it.
    let (status, outcome, found) = push(&app, json!({"phone": PHONE})).await;
    assert_eq!(
        (status, outcome.as_str(), &found["id"]),
        (200, "unchanged", &bare["id"])
    );
    app.stop().await;
}

#[tokio::test]
async fn a_phone_alone_names_the_record_without_external_id_before_older_ones_with() {
    let app = App::start().await;
    let (_, _, older) = push(&app, json!({"phone": "+33611111111", "external_id": "A"})).await;
    let (_, _, bare) = push(&app, json!({"phone": PHONE})).await;
    push(&app, json!({"phone": PHONE, "external_id": "A"})).await;
    let (_, _, found) = push(&app, json!({"phone": PHONE, "first_name": "Alex"})).await;
    assert_eq!(found["id"], bare["id"]);
    assert_ne!(found["id"], older["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_phone_alone_names_the_oldest_record_and_its_external_id_stays() {
    let app = App::start().await;
    let (status, _, first) = push(&app, json!({"phone": PHONE, "external_id": "A"})).await;
    assert_eq!(status, 201);
    for later in ["B", "C"] {
        let (status, _, _) = push(&app, json!({"phone": PHONE, "external_id": later})).await;
        assert_eq!(status, 201, "families share a phone");
    }
    let changed = json!({"phone": PHONE, "first_name": "Camille"});
    let (status, outcome, found) = push(&app, changed).await;
    assert_eq!(
        (status, outcome.as_str(), &found["id"]),
        (200, "updated", &first["id"])
    );
    assert_eq!(found["external_id"], "A");
    assert_eq!(app.count("customers").await, 3);
    app.stop().await;
}

#[tokio::test]
async fn any_spelling_of_a_number_is_the_same_phone() {
    let app = App::start().await;
    let (_, _, first) = push(&app, json!({"phone": PHONE})).await;
    let before = snapshot(&app.pool).await;
    for spelling in [
        "+33 6 12 34 56 78",
        "+33-6-12-34-56-78",
        "+33 (0)6 12 34 56 78",
    ] {
        let (status, outcome, record) = push(&app, json!({"phone": spelling})).await;
        assert_eq!((status, outcome.as_str()), (200, "unchanged"), "{spelling}");
        assert_eq!(record, first);
    }
    assert_eq!(snapshot(&app.pool).await, before);
    app.stop().await;
}

#[tokio::test]
async fn a_national_spelling_is_read_in_the_country_of_the_store() {
    let app = App::start().await;
    let national = json!({"phone": "06 12 34 56 78"});
    let refused = app.post("customers", &national).await.expect(422);
    assert_eq!(refused.faulty(), ["phone"]);
    let order = json!({
        "external_id": "O", "placed_at": "2026-01-01T00:00:00Z", "total_price": 1, "customer": national,
    });
    assert_eq!(
        app.post("orders", &order).await.expect(422).faulty(),
        ["customer.phone"]
    );

    let new = NewStore {
        team_id: app.team_id,
        name: "FR",
        external_id: None,
        default_country: Some("FR"),
    };
    let store = tenancy::create_store(&app.pool, new, app.clock.now())
        .await
        .expect("a store");
    let path = |rest: &str| format!("/api/v1/stores/{}/{rest}", store.id);
    let send = async |rest: &str, body: &Value| {
        app.send(http::Method::POST, &path(rest), &[], body.to_string())
            .await
    };
    let made = send("customers", &national).await.expect(201).json();
    assert_eq!(made["phone"], PHONE);
    let international = send("customers", &json!({"phone": PHONE}))
        .await
        .expect(200);
    assert_eq!(international.outcome(), "unchanged");
    let ordered = send("orders", &order).await.expect(201).json();
    assert_eq!(ordered["customer"]["id"], made["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_customer_is_read_by_external_id_and_by_phone_only_where_there_is_none() {
    let app = App::start().await;
    let bare = app
        .post("customers", &json!({"phone": PHONE}))
        .await
        .expect(201);
    assert!(
        bare.header("location")
            .ends_with("/customers/%2B33612345678")
    );
    let by_phone = app.get("customers/%2B33612345678").await.expect(200);
    assert_eq!(by_phone.text, bare.text);
    app.post("customers", &json!({"phone": PHONE, "external_id": "A"}))
        .await
        .expect(200);
    app.get("customers/%2B33612345678").await.expect(404);
    app.get("customers/A").await.expect(200);
    // An external id that looks like a phone comes first.
    let tricky = json!({"phone": "+33611111111", "external_id": PHONE});
    let tricky = app.post("customers", &tricky).await.expect(201);
    let found = app.get("customers/%2B33612345678").await.expect(200);
    assert_eq!(found.text, tricky.text);
    app.stop().await;
}

#[tokio::test]
async fn one_document_follows_the_rules_item_by_item() {
    let app = App::start().await;
    let items = json!({"items": [
        {"phone": PHONE},
        {"phone": PHONE, "external_id": "A"},
        {"phone": PHONE, "external_id": "B"},
        {"phone": PHONE, "first_name": "Camille"},
        {"phone": "+33611111111", "external_id": "A"},
        {"phone": PHONE, "first_name": "Alex"},
    ]});
    let answer = app.post("customers/bulk", &items).await.expect(200).json();
    let results = answer["results"].as_array().expect("a list");
    let outcomes: Vec<_> = results
        .iter()
        .map(|one| one["outcome"].as_str().expect("text"))
        .collect();
    assert_eq!(
        outcomes,
        [
            "created", "updated", "created", "updated", "updated", "updated"
        ]
    );
    let id = |at: usize| &results[at]["id"];
    assert_eq!((id(1), id(3), id(4)), (id(0), id(0), id(0)));
    assert_eq!(
        id(5),
        id(2),
        "A has left the phone, so B is the oldest there"
    );
    assert_eq!(app.count("customers").await, 2);
    app.stop().await;
}
