//! Runs that send nothing, and why; and what is in those that do.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout, on_change};
use crate::support::messaging::PHONE;

/// An automation whose template has one variable, filled from here.
async fn filled_from(app: &App, source: &str) -> Value {
    let id = app.template("hello", "Hello {{value}}").await;
    let mut body = on_change("a", "checkouts", id);
    body["action"]["send_template"]["variables"] = json!({ "value": source });
    app.automate(&body).await
}

/// A checkout with this free data.
fn carrying(key: &str, metadata: &Value) -> Value {
    let mut body = checkout(key, "abandoned");
    body["metadata"] = metadata.clone();
    body
}

#[tokio::test]
async fn a_contact_that_opted_out_gets_nothing() {
    let app = App::start().await;
    app.automate(&on_change("a", "checkouts", app.greeting().await))
        .await;
    app.hear_from(PHONE, "STOP").await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    assert_eq!(app.outcomes("a").await, ["skipped contact_opted_out"]);
    app.hear_from(PHONE, "START").await;
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    let outcomes = app.outcomes("a").await;
    assert_eq!(outcomes, ["skipped contact_opted_out", "sent"]);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn without_its_template_a_run_fails() {
    let app = App::start().await;
    let id = app.greeting().await;
    app.automate(&on_change("a", "checkouts", id)).await;
    for (n, statement) in [
        "update message_templates set status = 'rejected'",
        "update message_templates set status = 'approved'",
        "delete from message_templates",
    ]
    .iter()
    .enumerate()
    {
        sqlx::query(*statement)
            .execute(&app.pool)
            .await
            .expect("ours");
        app.post("checkouts", &checkout(&format!("B-{n}"), "abandoned"))
            .await
            .expect(201);
        app.at_rest().await;
    }
    let failed = "failed template_not_found";
    assert_eq!(app.outcomes("a").await, [failed, "sent", failed]);
    app.stop().await;
}

#[tokio::test]
async fn a_template_that_has_got_other_variables_is_not_sent() {
    let app = App::start().await;
    filled_from(&app, "=Ada").await;
    let more = json!({ "name": "hello", "language": "en", "body": "Hello {{value}} {{more}}" });
    app.post("message-templates", &more).await.expect(200);
    app.post("checkouts", &checkout("B", "abandoned"))
        .await
        .expect(201);
    let failed = "failed variables_invalid variables.more";
    assert_eq!(app.outcomes("a").await, [failed]);
    assert_eq!(app.count("contacts").await, 0, "nothing of it is left");
    app.stop().await;
}

#[tokio::test]
async fn a_value_that_is_not_there_or_no_single_one_or_too_long_fails_the_run_by_its_name() {
    let app = App::start().await;
    filled_from(&app, "/metadata/v").await;
    let longest = "é".repeat(1_024);
    let longer = "é".repeat(1_025);
    for (n, (metadata, expected)) in [
        (json!({}), "failed variable_missing value"),
        (json!({ "v": null }), "failed variable_missing value"),
        (json!({ "v": {} }), "failed variable_not_single value"),
        (json!({ "v": ["x"] }), "failed variable_not_single value"),
        (json!({ "v": longer }), "failed variable_too_long value"),
        (json!({ "v": longest }), "sent"),
        (json!({ "v": "" }), "sent"),
        (json!({ "v": 0 }), "sent"),
        (json!({ "v": false }), "sent"),
    ]
    .iter()
    .enumerate()
    {
        let key = format!("B-{n}");
        app.post("checkouts", &carrying(&key, metadata))
            .await
            .expect(201);
        assert_eq!(app.outcomes("a").await[n], *expected, "{metadata}");
    }
    app.stop().await;
}

/// The values that the only message was sent with, as they were written.
async fn sent_value(app: &App) -> String {
    app.at_rest().await;
    let content: Value = sqlx::query_scalar("select content from messages")
        .fetch_one(&app.pool)
        .await
        .expect("one message");
    let pairs = content["variables"].as_array().expect("a list");
    assert_eq!(pairs.len(), 1, "{content}");
    assert_eq!(pairs[0][0], "value");
    pairs[0][1].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn values_are_those_that_the_record_is_answered_with() {
    for (source, expected) in [
        ("/customer/first_name", "Ada"),
        ("/total_price", "49.90"),
        ("/recovery_url", "https://shop.example.com/recover/1"),
        ("/customer/phone", PHONE),
        ("/version", "1"),
        ("/tags/1", "b"),
        ("/line_items/0/title", "Tea"),
        ("/metadata/a~1b/~0", "deep"),
        ("/metadata/number", "12345678901234567890.10"),
        ("/metadata/yes", "true"),
        ("=/customer/first_name", "/customer/first_name"),
        ("==", "="),
        ("=", ""),
    ] {
        let app = App::start().await;
        filled_from(&app, source).await;
        let mut body = checkout("B", "abandoned");
        body["tags"] = json!(["a", "b"]);
        body["line_items"] = json!([{ "title": "Tea" }]);
        let metadata = r#"{"a/b": {"~": "deep"}, "number": 12345678901234567890.10, "yes": true}"#;
        body["metadata"] = json!("METADATA");
        let body = body.to_string().replace("\"METADATA\"", metadata);
        let path = app.path("checkouts");
        app.deliver(&path, body).await.expect(201);
        assert_eq!(sent_value(&app).await, expected, "{source}");
        app.stop().await;
    }
}
