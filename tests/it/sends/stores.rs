//! Which store a request is about, and who may ask.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::{self, App};
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};
use crate::support::scale::eventually;

/// A request with another key.
async fn as_key(app: &App, key: &str, path: &str, body: &Value) -> app::Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    if body.is_null() {
        return app.send(Method::GET, path, &headers, "").await;
    }
    app.send(Method::POST, path, &headers, body.to_string())
        .await
}

#[tokio::test]
async fn the_store_may_be_left_out_where_only_one_can_be_meant() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let template = app.template("hello", "Hello").await;
    let sends = [
        (SEND, text_to(PHONE, "Hello")),
        (TEMPLATES, template_to(PHONE, template, &json!({}))),
    ];
    let lists = ["messages", "get_templates", "idempotency-keys"];
    // The team has one store.
    for (path, body) in &sends {
        let sent = app.deliver(path, body.to_string()).await.expect(201);
        assert_eq!(sent.json()["store_id"], app.store_id);
    }
    for list in lists {
        app.read(&format!("/api/v1/{list}")).await.expect(200);
    }
    // Now it has two, and the key may use both.
    let (_, second_key) = app.another_store(None).await;
    for (path, body) in &sends {
        let refused = app.deliver(path, body.to_string()).await.expect(422);
        assert_eq!(refused.faulty(), ["store_id"]);
        let mut body = body.clone();
        body["store_id"] = Value::Null;
        let refused = app.deliver(path, body.to_string()).await.expect(422);
        assert_eq!(refused.faulty(), ["store_id"]);
        body["store_id"] = json!(app.store_id);
        app.deliver(path, body.to_string()).await.expect(201);
    }
    for list in lists {
        let refused = app.read(&format!("/api/v1/{list}")).await.expect(422);
        assert_eq!(refused.faulty(), ["store_id"]);
        let named = format!("/api/v1/{list}?store_id={}", app.store_id);
        app.read(&named).await.expect(200);
    }
    // A key of one store means that one.
    let only = app::key(&app.pool, &app.clock, app.team_id, Some(app.store_id)).await;
    for (path, body) in &sends {
        let sent = as_key(&app, &only.1, path, body).await.expect(201);
        assert_eq!(sent.json()["store_id"], app.store_id);
    }
    let second = as_key(&app, &second_key, "/api/v1/messages", &Value::Null).await;
    let empty = json!({ "data": [], "next_cursor": null });
    assert_eq!(second.expect(200).json(), empty);
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_and_the_missing_store_are_named_together() {
    let app = App::start().await;
    app.another_store(None).await;
    let refused = app.deliver(SEND, "{}").await.expect(422);
    assert_eq!(refused.faulty(), ["store_id", "to", "type"]);
    let refused = app.deliver(TEMPLATES, "{}").await.expect(422);
    let all = ["phone_number", "store_id", "template_id"];
    assert_eq!(refused.faulty(), all);
    for wrong in [
        json!("1"),
        json!(0),
        json!(-1),
        json!(1.5),
        json!([1]),
        json!(true),
    ] {
        let mut body = text_to(PHONE, "Hello");
        body["store_id"] = wrong;
        let refused = app.deliver(SEND, body.to_string()).await.expect(422);
        assert_eq!(refused.faulty(), ["store_id"], "{body}");
    }
    for wrong in ["0", "-1", "x", "1.5", "", "%2B1"] {
        let refused = app
            .read(&format!("/api/v1/messages?store_id={wrong}"))
            .await;
        let refused = refused.expect(400);
        assert_eq!(refused.faulty(), ["store_id"], "{wrong}");
    }
    app.stop().await;
}

#[tokio::test]
async fn national_spellings_are_read_by_the_country_of_the_store() {
    let app = App::start().await;
    let (store_id, key) = app.another_store(Some("FR")).await;
    let said = json!({ "from": "06 12 34 56 78", "text": "Hello" });
    let inbound = format!("/api/v1/stores/{store_id}/sandbox/inbound");
    as_key(&app, &key, &inbound, &said).await.expect(204);
    let body = text_to("06.12.34.56.78", "Hello");
    let sent = as_key(&app, &key, SEND, &body).await.expect(201);
    assert_eq!(sent.json()["to"], PHONE);
    // The same where the body names the store.
    let mut named = body.clone();
    named["store_id"] = json!(store_id);
    let sent = app.deliver(SEND, named.to_string()).await.expect(201);
    assert_eq!(sent.json()["to"], PHONE);
    named["store_id"] = json!(app.store_id);
    let refused = app.deliver(SEND, named.to_string()).await.expect(422);
    assert_eq!(refused.faulty(), ["to"]);
    app.stop().await;
}

#[tokio::test]
async fn a_store_of_others_is_forbidden_and_an_unknown_one_is_not_found() {
    let app = App::start().await;
    let (_, foreign, _) = app::tenant(&app.pool, &app.clock, "Other").await;
    let (second, second_key) = app.another_store(None).await;
    for (key, store_id, status, code) in [
        (&app.key, foreign, 403, "store_forbidden"),
        (&app.key, 9_999_999, 404, "store_not_found"),
        (&second_key, app.store_id, 403, "store_forbidden"),
        (&second_key, second, 200, ""),
    ] {
        for path in ["messages", "get_templates", "idempotency-keys"] {
            let path = format!("/api/v1/{path}?store_id={store_id}");
            let answer = as_key(&app, key, &path, &Value::Null).await.expect(status);
            if status != 200 {
                assert_eq!(answer.code(), code, "{path}");
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_paused_store_is_not_found_by_anything() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let sent = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    let set = async |status: &str| {
        keyfold::tenancy::set_store_status(&app.pool, app.store_id, status)
            .await
            .expect("the statement runs")
            .expect("it is there");
    };
    set("paused").await;
    // Within 5 s it counts.
    eventually("the store is paused", || async {
        (app.keyed(SEND, "k", body.as_str()).await.status == 404).then_some(())
    })
    .await;
    let store = format!("?store_id={}", app.store_id);
    let template = template_to(PHONE, 1, &json!({})).to_string();
    let said = json!({ "from": PHONE, "text": "Hello" });
    for answer in [
        app.keyed(SEND, "k", body.as_str()).await,
        app.deliver(TEMPLATES, template).await,
        app.post("sandbox/inbound", &said).await,
        app.post("message-templates", &json!({})).await,
        app.read(sent.header("location")).await,
        app.read(&format!("/api/v1/messages{store}")).await,
        app.read(&format!("/api/v1/get_templates{store}")).await,
        app.read(&format!("/api/v1/idempotency-keys{store}")).await,
        app.remove(&format!("/api/v1/idempotency-keys/send/k{store}"))
            .await,
    ] {
        assert_eq!(answer.expect(404).code(), "store_not_found");
    }
    set("active").await;
    let again = eventually("the store is active", || async {
        let answer = app.keyed(SEND, "k", body.as_str()).await;
        (answer.status != 404).then_some(answer)
    })
    .await;
    assert_eq!(again.expect(201).text, sent.text);
    app.stop().await;
}

#[tokio::test]
async fn me_tells_whose_the_key_is_and_what_it_may_use() {
    let app = App::start().await;
    let (second, second_key) = app.another_store(Some("FR")).await;
    let stores = json!([
        {
            "id": app.store_id, "name": "Test", "external_id": null, "default_country": null,
            "status": "active",
        },
        {
            "id": second, "name": "Second", "external_id": null, "default_country": "FR",
            "status": "active",
        },
    ]);
    for (key, store_id, stores) in [
        (&app.key, Value::Null, stores.clone()),
        (&second_key, json!(second), json!([stores[1]])),
    ] {
        let me = as_key(&app, key, "/api/v1/me", &Value::Null).await;
        let me = me.expect(200).json();
        let expected = json!({
            "team": { "id": app.team_id, "name": "Test" },
            "key": { "id": me["key"]["id"], "name": "test", "store_id": store_id },
            "stores": stores,
            "limits": {
                "rate_limit_per_minute": 0, "idempotency_retention_hours": 24,
                "event_retention_days": 30,
            },
        });
        assert_eq!(me, expected);
        assert!(!me.to_string().contains(key.as_str()));
    }
    as_key(&app, "kf_wrong", "/api/v1/me", &Value::Null)
        .await
        .expect(401);
    app.stop().await;
}
