//! Reading messages: one, and page by page.

use serde_json::{Value, json};

use crate::support::app::{self, App};
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};

#[tokio::test]
async fn a_message_tells_what_became_of_it() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let sent = app.deliver(SEND, body).await.expect(201);
    let accepted = sent.json();
    app.message_becomes(&accepted["message_id"], "delivered")
        .await;
    let message = app.read(sent.header("location")).await.expect(200);
    assert!(!message.text.contains("Hello"), "never what was sent");
    let message = message.json();
    let at = |step: usize| message["timeline"][step]["at"].clone();
    let step =
        |status: &str, at: Value| json!({"status": status, "at": at, "code": null, "detail": null});
    let expected = json!({
        "message_id": accepted["message_id"], "status": "delivered", "store_id": app.store_id,
        "to": PHONE, "contact_id": accepted["contact_id"], "type": "text",
        "provider_message_id": message["provider_message_id"], "error": null,
        "timeline": [
            step("queued", accepted["created_at"].clone()), step("sent", at(1)),
            step("delivered", at(2)),
        ],
        "version": message["version"], "created_at": accepted["created_at"],
        "updated_at": message["updated_at"],
    });
    assert_eq!(message, expected);
    assert!(message["provider_message_id"].is_string());
    assert!(App::time(&message["updated_at"]) > App::time(&message["created_at"]));
    app.stop().await;
}

#[tokio::test]
async fn each_change_of_a_message_is_an_event_of_its_store() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    let sent = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
    let id = sent.json()["message_id"].clone();
    let message = app.message_becomes(&id, "delivered").await;
    app.keyed(TEMPLATES, "k", body).await.expect(201);
    let events: Vec<Value> = app
        .events()
        .await
        .into_iter()
        .filter(|event| event["resource"] == "messages")
        .collect();
    assert!(events.iter().all(|event| event["record_id"] == id));
    let told: Vec<(&str, i64)> = events
        .iter()
        .map(|event| {
            let kind = event["type"].as_str().expect("a type");
            (kind, event["version"].as_i64().expect("a version"))
        })
        .collect();
    let last = message["version"].as_i64().expect("a version");
    let mut expected = vec![("message.created", 1)];
    expected.extend((2..=last).map(|version| ("message.updated", version)));
    assert_eq!(told, expected);
    app.stop().await;
}

#[tokio::test]
async fn messages_are_read_page_by_page_in_the_order_of_their_acceptance() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let phone = format!("+3361000{n:04}");
        let body = template_to(&phone, template, &json!({})).to_string();
        let sent = app.deliver(TEMPLATES, body).await.expect(201);
        ids.push(sent.json()["message_id"].clone());
    }
    for limit in [1, 3, 7, 200] {
        let list = format!("/api/v1/messages?store_id={}&limit={limit}", app.store_id);
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = app
                .read(&format!("{list}{cursor}"))
                .await
                .expect(200)
                .json();
            let data = page["data"].as_array().expect("a list");
            assert!(data.len() <= limit);
            seen.extend(data.iter().map(|message| message["message_id"].clone()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen, ids, "{limit}");
    }
    let first = format!("/api/v1/messages?store_id={}&limit=1", app.store_id);
    let cursor = app.read(&first).await.json()["next_cursor"].clone();
    let cursor = cursor.as_str().expect("there are more").to_owned();
    let (second, _) = app.another_store(None).await;
    for refused in [
        format!("/api/v1/messages?store_id={second}&cursor={cursor}"),
        format!(
            "/api/v1/idempotency-keys?store_id={}&cursor={cursor}",
            app.store_id
        ),
        format!(
            "/api/v1/messages?store_id={}&cursor={cursor}x",
            app.store_id
        ),
        format!("/api/v1/messages?store_id={}&cursor=", app.store_id),
    ] {
        let answer = app.read(&refused).await.expect(400);
        assert_eq!(answer.code(), "cursor_invalid", "{refused}");
    }
    for refused in [
        "limit=0",
        "limit=201",
        "limit=x",
        "unknown=1",
        "limit=1&limit=1",
    ] {
        let list = format!("/api/v1/messages?store_id={}&{refused}", app.store_id);
        app.read(&list).await.expect(400);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_is_not_the_stores_is_not_found() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    let sent = app.deliver(TEMPLATES, body).await.expect(201).json();
    let id = sent["message_id"].as_str().expect("an id");
    let (second, _) = app.another_store(None).await;
    let (_, foreign, foreign_key) = app::tenant(&app.pool, &app.clock, "Other").await;
    let unknown = uuid::Uuid::nil();
    for (id, store_id, status, code) in [
        (id.to_owned(), second, 404, "not_found"),
        (unknown.to_string(), app.store_id, 404, "not_found"),
        ("x".to_owned(), app.store_id, 404, "not_found"),
        ("send".to_owned(), app.store_id, 404, "not_found"),
        ("%00".to_owned(), app.store_id, 404, "not_found"),
        ("%".to_owned(), app.store_id, 400, "path_invalid"),
        (id.to_owned(), foreign, 403, "store_forbidden"),
        (id.to_owned(), 9_999_999, 404, "store_not_found"),
    ] {
        let path = format!("/api/v1/messages/{id}?store_id={store_id}");
        let answer = app.read(&path).await.expect(status);
        assert_eq!(answer.code(), code, "{path}");
    }
    // Nor does another team find it in its own store.
    let bearer = format!("Bearer {foreign_key}");
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/api/v1/messages/{id}");
    let theirs = app.send(http::Method::GET, &path, &headers, "").await;
    assert_eq!(theirs.expect(404).code(), "not_found");
    app.stop().await;
}
