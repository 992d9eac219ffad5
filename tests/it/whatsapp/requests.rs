//! What the API is sent, byte for byte as far as JSON goes.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::meta::Meta;
use crate::support::scale::eventually;
use crate::support::whatsapp::{
    ADA, TOKEN, hear_from, message_id, number_of, post_message, start, sync_templates, text,
};

/// The body of the one call, after its token and path were checked.
async fn called(app: &App, meta: &Meta) -> Value {
    let calls = eventually("it is called", || async {
        let calls = meta.calls();
        (!calls.is_empty()).then_some(calls)
    })
    .await;
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].method, "POST");
    assert_eq!(
        calls[0].path,
        format!("/{}/messages", number_of(app.store_id))
    );
    assert_eq!(
        (calls[0].query.as_str(), calls[0].token.as_str()),
        ("", TOKEN)
    );
    calls[0].body.clone()
}

/// What stands in every request, and this part of its own.
fn expected(app: &App, id: uuid::Uuid, kind: &str, part: &Value) -> Value {
    json!({
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": ADA,
        "biz_opaque_callback_data": format!("{}:{id}:1", app.store_id),
        "type": kind,
        kind: part,
    })
}

#[tokio::test]
async fn a_text_is_sent_as_it_was_written() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let words = "Grüße, \"Ada\"\n\u{1f600} {{1}} \\";
    let answer = post_message(&app, &text(app.store_id, ADA, words)).await;
    let id = message_id(&answer.expect(201));
    let expected = expected(&app, id, "text", &json!({ "body": words }));
    assert_eq!(called(&app, &meta).await, expected);
    app.stop().await;
}

#[tokio::test]
async fn a_file_is_sent_with_its_link_and_its_caption() {
    let link = "https://shop.example/a.png?x=1&y=2";
    let captioned = json!({ "link": link, "caption": "Your order" });
    let bare = json!({ "link": link });
    for (kind, part) in [
        ("image", &captioned),
        ("image", &bare),
        ("video", &captioned),
        ("document", &captioned),
        ("audio", &bare),
    ] {
        let meta = Meta::start().await;
        let app = start(&meta).await;
        hear_from(&app, app.store_id, &[ADA]).await;
        let body = json!({ "store_id": app.store_id, "to": ADA, "type": kind, kind: part });
        let id = message_id(&post_message(&app, &body).await.expect(201));
        assert_eq!(called(&app, &meta).await, expected(&app, id, kind, part));
        app.stop().await;
    }
}

/// Sends the only template there is.
async fn send_template(app: &App, variables: &Value) -> uuid::Uuid {
    let path = format!("/api/v1/get_templates?store_id={}", app.store_id);
    let templates = app
        .send(Method::GET, &path, &[], "")
        .await
        .expect(200)
        .json();
    assert_eq!(templates.as_array().map(Vec::len), Some(1), "{templates}");
    let body = json!({
        "store_id": app.store_id, "template_id": templates[0]["id"], "phone_number": ADA,
        "variables": variables
    });
    let answer = app
        .send(Method::POST, "/api/v1/templates", &[], body.to_string())
        .await;
    message_id(&answer.expect(201))
}

#[tokio::test]
async fn a_template_with_named_variables_is_filled_by_name() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let described = json!({
        "name": "order_shipped", "language": "en_US", "status": "APPROVED",
        "parameter_format": "NAMED", "id": "1",
        "components": [
            { "type": "HEADER", "format": "TEXT", "text": "Hello {{first_name}}" },
            { "type": "BODY", "text": "{{order}} is on its way to {{first_name}}." },
            { "type": "FOOTER", "text": "Bye" },
            { "type": "BUTTONS", "buttons": [
                { "type": "URL", "text": "Track", "url": "https://shop.example/t/{{1}}" }
            ]}
        ]
    });
    meta.set_templates(vec![described], 100);
    sync_templates(&app, &meta, app.store_id).await;
    let variables = json!({ "button_0": "T-1", "order": "#1001", "first_name": "Ada" });
    let id = send_template(&app, &variables).await;
    let named =
        |name: &str, value: &str| json!({ "type": "text", "parameter_name": name, "text": value });
    let part = json!({
        "name": "order_shipped",
        "language": { "code": "en_US" },
        "components": [
            { "type": "header", "parameters": [named("first_name", "Ada")] },
            { "type": "body", "parameters": [named("order", "#1001"), named("first_name", "Ada")] },
            { "type": "button", "sub_type": "url", "index": "0",
              "parameters": [{ "type": "text", "text": "T-1" }] },
        ],
    });
    assert_eq!(
        called(&app, &meta).await,
        expected(&app, id, "template", &part)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_template_with_numbered_variables_is_filled_in_their_order() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let described = json!({
        "name": "back_in_stock", "language": "fr", "status": "APPROVED",
        "parameter_format": "POSITIONAL", "id": "1",
        "components": [
            { "type": "HEADER", "format": "TEXT", "text": "Bonjour {{1}}" },
            { "type": "BODY", "text": "{{1}} est de retour : {{2}}" },
        ]
    });
    meta.set_templates(vec![described], 100);
    sync_templates(&app, &meta, app.store_id).await;
    let variables = json!({ "2": "30 €", "header_1": "Ada", "1": "Le thé" });
    let id = send_template(&app, &variables).await;
    let numbered = |value: &str| json!({ "type": "text", "text": value });
    let part = json!({
        "name": "back_in_stock",
        "language": { "code": "fr" },
        "components": [
            { "type": "header", "parameters": [numbered("Ada")] },
            { "type": "body", "parameters": [numbered("Le thé"), numbered("30 €")] },
        ],
    });
    assert_eq!(
        called(&app, &meta).await,
        expected(&app, id, "template", &part)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_template_with_more_than_nine_numbered_variables_keeps_their_numeric_order() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    // The provider fills by number, wherever in the text a number stands.
    let described = json!({
        "name": "many", "language": "en", "status": "APPROVED",
        "parameter_format": "POSITIONAL", "id": "1",
        "components": [{
            "type": "BODY",
            "text": "{{2}} {{1}} {{3}} {{4}} {{5}} {{6}} {{7}} {{8}} {{9}} {{11}} {{10}}"
        }]
    });
    meta.set_templates(vec![described], 100);
    sync_templates(&app, &meta, app.store_id).await;
    let variables: serde_json::Map<String, Value> = (1..=11)
        .map(|n| (n.to_string(), json!(format!("value {n}"))))
        .collect();
    let id = send_template(&app, &json!(variables)).await;
    let parameters: Vec<Value> = (1..=11)
        .map(|n| json!({ "type": "text", "text": format!("value {n}") }))
        .collect();
    let part = json!({
        "name": "many", "language": { "code": "en" },
        "components": [{ "type": "body", "parameters": parameters }],
    });
    assert_eq!(
        called(&app, &meta).await,
        expected(&app, id, "template", &part)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_template_without_variables_has_no_components() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let described = json!({
        "name": "hello_world", "language": "en_US", "status": "APPROVED", "id": "1",
        "components": [{ "type": "BODY", "text": "Hello" }]
    });
    meta.set_templates(vec![described], 100);
    sync_templates(&app, &meta, app.store_id).await;
    let id = send_template(&app, &json!({})).await;
    let part = json!({ "name": "hello_world", "language": { "code": "en_US" } });
    assert_eq!(
        called(&app, &meta).await,
        expected(&app, id, "template", &part)
    );
    app.stop().await;
}
