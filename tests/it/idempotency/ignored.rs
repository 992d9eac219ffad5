//! Where a key is not read: everywhere but on the two sending endpoints.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::load::order;
use crate::support::messaging::{PHONE, SEND, text_to};

/// No key at all, to whoever reads one.
const MALFORMED: &str = "not a key";

#[tokio::test]
async fn commerce_and_reading_and_deleting_ignore_the_key_even_a_malformed_one() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let sent = app.keyed(SEND, "k", body).await.expect(201);
    let stored = app.stored_keys().await;
    let customer = json!({ "external_id": "C", "phone": "+33699999999" });
    let template = json!({ "name": "hello", "language": "en", "body": "Hello" });
    let said = json!({ "from": PHONE, "text": "Hello" });
    let many = json!({ "items": [order("P", 1, 1)] });
    let store = format!("?store_id={}", app.store_id);
    let nothing = Value::Null;
    let requests: Vec<(Method, String, &Value, u16)> = vec![
        (Method::POST, app.path("customers"), &customer, 201),
        (Method::POST, app.path("customers"), &customer, 200),
        (Method::POST, app.path("orders/bulk"), &many, 200),
        (Method::GET, app.path("customers/C"), &nothing, 200),
        (Method::GET, app.path("customers"), &nothing, 200),
        (Method::GET, app.path("events"), &nothing, 200),
        (Method::DELETE, app.path("customers/C"), &nothing, 204),
        (Method::POST, app.path("message-templates"), &template, 201),
        (Method::POST, app.path("sandbox/inbound"), &said, 204),
        (
            Method::GET,
            sent.header("location").to_owned(),
            &nothing,
            200,
        ),
        (
            Method::GET,
            format!("/api/v1/messages{store}"),
            &nothing,
            200,
        ),
        (
            Method::GET,
            format!("/api/v1/get_templates{store}"),
            &nothing,
            200,
        ),
        (Method::GET, "/api/v1/me".to_owned(), &nothing, 200),
        (
            Method::GET,
            format!("/api/v1/messages/send{store}"),
            &nothing,
            404,
        ),
        (
            Method::GET,
            format!("/api/v1/idempotency-keys{store}"),
            &nothing,
            200,
        ),
        (
            Method::DELETE,
            format!("/api/v1/idempotency-keys/send/other{store}"),
            &nothing,
            404,
        ),
    ];
    for (method, path, body, status) in requests {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        for key in ["k", MALFORMED] {
            let headers = [("idempotency-key", key)];
            let answer = app
                .send(method.clone(), &path, &headers, body.as_str())
                .await;
            // What came first may have changed what the second is told.
            let fits = answer.status == status || answer.status == 200 && status == 201;
            assert!(fits, "{method} {path}: {} {}", answer.status, answer.text);
            assert_eq!(
                answer.header("idempotency-status"),
                "ignored",
                "{method} {path}"
            );
            assert_eq!(answer.headers.get("idempotent-replayed"), None);
        }
        let without = app.send(method, &path, &[], body).await;
        assert_eq!(without.headers.get("idempotency-status"), None, "{path}");
    }
    assert_eq!(app.stored_keys().await, stored);
    app.stop().await;
}

#[tokio::test]
async fn the_sending_endpoints_do_not_say_that_they_ignore_it() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    for key in ["k", "k"] {
        let answer = app.keyed(SEND, key, body.as_str()).await.expect(201);
        assert_eq!(answer.headers.get("idempotency-status"), None);
    }
    app.stop().await;
}

#[tokio::test]
async fn without_a_key_each_send_is_a_message_of_its_own() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let answer = app.deliver(SEND, body.as_str()).await.expect(201);
        assert_eq!(answer.headers.get("idempotent-replayed"), None);
        ids.insert(answer.json()["message_id"].to_string());
    }
    assert_eq!((ids.len(), app.count("idempotency_keys").await), (3, 0));
    app.stop().await;
}
