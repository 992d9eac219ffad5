//! DELETE of a customer, as far as messages go.

use http::Method;
use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};
use crate::support::rows::texts;
use crate::support::scale::eventually;

/// In every text that names the person.
const CANARY: &str = "Canary";

async fn idle_app() -> App {
    let idle = |config: &mut keyfold::config::Config| config.works = false;
    App::start_with(idle, Limits::default()).await
}

/// A record of this person.
async fn customer(app: &App, external_id: &str, phone: &str) {
    let customer = json!({ "external_id": external_id, "phone": phone, "first_name": CANARY });
    app.post("customers", &customer).await.expect(201);
}

async fn erase(app: &App, external_id: &str) {
    app.delete(&format!("customers/{external_id}"))
        .await
        .expect(204);
}

/// As Postgres shows the bytes of a text.
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows that still hold something of the person, as text or as bytes.
async fn traces(app: &App) -> Vec<String> {
    let digits = PHONE.trim_start_matches('+');
    let lower = CANARY.to_lowercase();
    let signs = [
        lower.clone(),
        digits.to_owned(),
        hex(CANARY),
        hex(&lower),
        hex(digits),
    ];
    let mut rows = texts(&app.pool).await;
    rows.retain(|row| {
        let row = row.to_lowercase();
        signs.iter().any(|sign| row.contains(sign))
    });
    rows
}

/// Sends of every kind to the person; gives path, body and answer of each.
async fn sends(app: &App) -> Vec<(&'static str, String, String)> {
    app.hear_from(PHONE, "Canary heard").await;
    let template = app.template("hello", "Hello {{first_name}}").await;
    let mut filled = template_to(PHONE, template, &json!({"first_name": "Canary-variable"}));
    filled["name"] = json!("Canary-name");
    filled["email"] = json!("canary@canary.example");
    let image = json!({
        "to": PHONE, "type": "image",
        "image": { "link": "https://cdn.example/canary.png", "caption": "Canary-caption" },
    });
    let mut sent = Vec::new();
    for (path, body) in [
        (SEND, text_to(PHONE, "Canary-text")),
        (SEND, image),
        (TEMPLATES, filled),
    ] {
        let (key, body) = (format!("k-{}", sent.len()), body.to_string());
        let answer = app.keyed(path, &key, body.as_str()).await.expect(201);
        sent.push((path, body, answer.text));
    }
    sent
}

#[tokio::test]
async fn nothing_that_names_the_person_is_left_of_their_messages() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    let sent = sends(&app).await;
    app.deliver(SEND, text_to(PHONE, "Canary without a key").to_string())
        .await
        .expect(201);
    for (_, _, answer) in &sent {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        app.message_becomes(&answer["message_id"], "delivered")
            .await;
    }
    eventually("the outbox is empty", || async {
        (app.count("outbox").await == 0).then_some(())
    })
    .await;
    assert!(traces(&app).await.len() > 8, "the signs are the right ones");
    erase(&app, "C").await;
    assert_eq!(traces(&app).await, [""; 0]);
    assert_eq!(app.count("contacts").await, 0);
    assert_eq!(app.count("messages").await, 4, "that there were some stays");
    app.stop().await;
}

#[tokio::test]
async fn an_erased_persons_message_is_answered_without_them() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let sent = app.deliver(SEND, body).await.expect(201).json();
    let before = app.message_becomes(&sent["message_id"], "delivered").await;
    erase(&app, "C").await;
    let mut expected = before;
    expected["to"] = Value::Null;
    expected["provider_message_id"] = Value::Null;
    assert_eq!(app.message(&sent["message_id"]).await, expected);
    let list = format!("/api/v1/messages?store_id={}", app.store_id);
    let page = app.read(&list).await.expect(200).json();
    assert_eq!(page["data"], json!([expected]));
    app.stop().await;
}

#[tokio::test]
async fn a_replay_after_the_erasure_has_the_same_members_without_the_person_and_sends_nothing() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    let sent = sends(&app).await;
    erase(&app, "C").await;
    for (n, (path, body, first)) in sent.iter().enumerate() {
        let key = format!("k-{n}");
        let again = app.keyed(path, &key, body.as_str()).await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.header("content-type"), "application/json");
        let first: Value = serde_json::from_str(first).expect("JSON");
        let mut expected = first.clone();
        expected["to"] = Value::Null;
        expected["contact_id"] = Value::Null;
        assert_eq!(again.json(), expected);
        let members = |value: &Value| -> Vec<String> {
            value
                .as_object()
                .expect("an object")
                .keys()
                .cloned()
                .collect()
        };
        assert_eq!(members(&again.json()), members(&first));
        assert!(
            again.text.starts_with(r#"{"message_id":"#),
            "in their order"
        );
        app.read(again.header("location")).await.expect(200);
        let other = app.keyed(path, &key, format!("{body} ")).await.expect(409);
        assert_eq!(other.code(), "idempotency_key_mismatch");
    }
    let count = i64::try_from(sent.len()).expect("few");
    assert_eq!(app.count("messages").await, count);
    assert_eq!(app.count("contacts").await, 0, "nor is the person back");
    assert_eq!(traces(&app).await, [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn while_another_record_has_the_number_its_messages_stay() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    customer(&app, "D", PHONE).await;
    app.hear_from(PHONE, "Hello").await;
    let body = text_to(PHONE, "Hello").to_string();
    let sent = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    let id = sent.json()["message_id"].clone();
    let before = app.message_becomes(&id, "delivered").await;
    erase(&app, "C").await;
    assert_eq!(app.message(&id).await, before);
    let again = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    assert_eq!(again.text, sent.text);
    // The window is still open.
    app.deliver(SEND, body.as_str()).await.expect(201);
    erase(&app, "D").await;
    assert_eq!(app.message(&id).await["to"], Value::Null);
    let closed = app.deliver(SEND, body).await.expect(422);
    assert_eq!(closed.code(), "outside_service_window");
    app.stop().await;
}

#[tokio::test]
async fn people_with_other_numbers_and_other_stores_keep_theirs() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    let template = app.template("hello", "Hello").await;
    let neighbour = template_to("+33612345679", template, &json!({})).to_string();
    let kept = app.keyed(TEMPLATES, "n", neighbour.as_str()).await;
    let kept = kept.expect(201);
    let id = kept.json()["message_id"].clone();
    let before = app.message_becomes(&id, "delivered").await;
    app.keyed(
        TEMPLATES,
        "k",
        template_to(PHONE, template, &json!({})).to_string(),
    )
    .await
    .expect(201);
    // The same person is known to another store of the team.
    let (store_id, key) = app.another_store(None).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let said = json!({ "from": PHONE, "text": "Hello" }).to_string();
    let inbound = format!("/api/v1/stores/{store_id}/sandbox/inbound");
    app.send(Method::POST, &inbound, &headers, said)
        .await
        .expect(204);
    erase(&app, "C").await;
    assert_eq!(app.message(&id).await, before);
    let mut neighbour_there = template_to("+33612345679", template, &json!({}));
    neighbour_there["store_id"] = json!(app.store_id);
    let body = neighbour_there.to_string();
    app.deliver(TEMPLATES, body).await.expect(201);
    assert_eq!(app.count("contacts").await, 2);
    let body = text_to(PHONE, "Hello").to_string();
    let there = app.send(Method::POST, SEND, &headers, body).await;
    assert_eq!(there.expect(201).json()["to"], PHONE, "its window is open");
    app.stop().await;
}

#[tokio::test]
async fn a_queued_message_to_an_erased_person_is_never_handed_over() {
    let app = idle_app().await;
    customer(&app, "C", PHONE).await;
    let sent = sends(&app).await;
    erase(&app, "C").await;
    assert_eq!(app.count("outbox").await, 0);
    // Whoever works from now on finds nothing to do for them.
    let working = app.another().await;
    let template = working.template("later", "Hello").await;
    let body = template_to("+33612345679", template, &json!({})).to_string();
    let later = working.deliver(TEMPLATES, body).await.expect(201).json();
    working
        .message_becomes(&later["message_id"], "delivered")
        .await;
    for (_, _, answer) in &sent {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        let message = app.message(&answer["message_id"]).await;
        assert_eq!(message["status"], "failed");
        let error = json!({ "code": "recipient_erased", "detail": null });
        assert_eq!(message["error"], error);
        let statuses: Vec<&Value> = message["timeline"]
            .as_array()
            .expect("a timeline")
            .iter()
            .map(|step| &step["status"])
            .collect();
        assert_eq!(statuses, ["queued", "failed"]);
    }
    assert_eq!(traces(&app).await, [""; 0]);
    working.stop().await;
    app.stop().await;
}

#[tokio::test]
async fn whoever_is_written_to_after_the_erasure_is_a_new_contact() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    let first = app.deliver(TEMPLATES, body.as_str()).await.expect(201);
    erase(&app, "C").await;
    let second = app.deliver(TEMPLATES, body).await.expect(201);
    assert_ne!(second.json()["contact_id"], first.json()["contact_id"]);
    let message = app
        .message_becomes(&second.json()["message_id"], "delivered")
        .await;
    assert_eq!(message["to"], PHONE);
    app.stop().await;
}

#[tokio::test]
async fn a_person_without_external_id_is_erased_by_their_number() {
    let app = App::start().await;
    let customer = json!({ "phone": PHONE, "first_name": CANARY });
    app.post("customers", &customer).await.expect(201);
    sends(&app).await;
    assert!(!traces(&app).await.is_empty());
    app.delete("customers/%2B33612345678").await.expect(204);
    eventually("what was in hand is done", || async {
        (app.count("outbox").await == 0).then_some(())
    })
    .await;
    assert_eq!(traces(&app).await, [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn refusals_that_are_kept_name_nobody() {
    let app = App::start().await;
    customer(&app, "C", PHONE).await;
    let body = text_to(PHONE, "Canary").to_string();
    let closed = app.keyed(SEND, "k", body.as_str()).await.expect(422);
    app.hear_from(PHONE, "STOP").await;
    app.keyed(SEND, "k-2", body.as_str()).await.expect(422);
    erase(&app, "C").await;
    assert_eq!(traces(&app).await, [""; 0]);
    let again = app.keyed(SEND, "k", body).await.expect(422);
    assert_eq!(again.text, closed.text);
    app.stop().await;
}

#[tokio::test]
async fn somebody_who_only_got_messages_is_erased_by_their_number() {
    let app = App::start().await;
    sends(&app).await;
    eventually("everything is handed over", || async {
        (app.count("outbox").await == 0).then_some(())
    })
    .await;
    assert!(!traces(&app).await.is_empty());
    // Another number, and an external id that nobody has, erase nobody.
    app.delete("customers/%2B33612345679").await.expect(204);
    app.delete("customers/C").await.expect(204);
    assert_eq!(app.count("contacts").await, 1);
    app.delete("customers/%2B33612345678").await.expect(204);
    assert_eq!(traces(&app).await, [""; 0]);
    assert_eq!(app.count("customers").await, 0);
    app.delete("customers/%2B33612345678").await.expect(204);
    app.stop().await;
}
