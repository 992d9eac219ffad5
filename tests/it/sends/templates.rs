//! Templates of the sandbox.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::with;
use crate::support::messaging::{PHONE, TEMPLATES, template_to};

fn shipped() -> Value {
    json!({
        "name": "order_shipped", "language": "en_US", "header": "Order {{number}}",
        "body": "Hello {{first_name}}, {{number}} is on its way", "footer": "{{shop}}",
        "buttons": [{ "type": "url", "text": "Track", "url": "https://x.example/{{code}}" }],
    })
}

#[tokio::test]
async fn a_template_is_made_changed_and_left_as_it_is() {
    let app = App::start().await;
    let post = async |body: &Value, status: u16, outcome: &str| {
        let answer = app.post("message-templates", body).await.expect(status);
        assert_eq!(answer.outcome(), outcome);
        answer.json()
    };
    let made = post(&shipped(), 201, "created").await;
    assert!(made["id"].is_i64());
    let expected = json!({
        "id": made["id"], "store_id": app.store_id, "name": "order_shipped", "language": "en_US",
        "status": "approved", "header": "Order {{number}}",
        "body": "Hello {{first_name}}, {{number}} is on its way", "footer": "{{shop}}",
        "buttons": [{ "type": "url", "text": "Track", "url": "https://x.example/{{code}}" }],
        "variables": ["number", "first_name", "shop", "code"],
        "created_at": made["created_at"], "updated_at": made["updated_at"],
    });
    assert_eq!(made, expected);
    assert_eq!(post(&shipped(), 200, "unchanged").await, made);
    let mut reordered = shipped();
    reordered["buttons"] = serde_json::from_str(
        r#"[{"url":"https://x.example/{{code}}","text":"Track","type":"url"}]"#,
    )
    .expect("JSON");
    assert_eq!(post(&reordered, 200, "unchanged").await, made);

    let changed = with(&shipped(), "body", json!("Bye {{name}}"));
    let updated = post(&changed, 200, "updated").await;
    assert_eq!(updated["id"], made["id"]);
    assert_eq!(updated["created_at"], made["created_at"]);
    assert!(App::time(&updated["updated_at"]) > App::time(&made["updated_at"]));
    assert_eq!(
        updated["variables"],
        json!(["number", "name", "shop", "code"])
    );

    let bare = json!({ "name": "order_shipped", "language": "en_US", "body": "Bare" });
    let bare = post(&bare, 200, "updated").await;
    assert_eq!(
        (
            &bare["header"],
            &bare["footer"],
            &bare["buttons"],
            &bare["variables"]
        ),
        (&Value::Null, &Value::Null, &json!([]), &json!([]))
    );
    // Language and name are the key, exactly as they are written.
    let mut ids = vec![made["id"].clone()];
    for (member, value) in [("language", "fr"), ("name", "Order_shipped")] {
        let other = with(&shipped(), member, json!(value));
        ids.push(post(&other, 201, "created").await["id"].clone());
    }
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    app.stop().await;
}

#[tokio::test]
async fn every_faulty_field_of_a_template_is_named_at_once() {
    let app = App::start().await;
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &["body", "language", "name"]),
        (json!([]), &[""]),
        (
            json!({
                "name": "", "language": "english!", "header": "h".repeat(61), "body": " ",
                "footer": "f".repeat(61), "buttons": {}, "category": "x",
            }),
            &[
                "body", "buttons", "category", "footer", "header", "language", "name",
            ],
        ),
        (with(&shipped(), "name", json!("n".repeat(513))), &["name"]),
        (
            with(&shipped(), "body", json!("b".repeat(1_025))),
            &["body"],
        ),
        (
            json!({
                "name": "n", "language": "en", "header": "{{", "body": "{{a b}}",
                "footer": "{{}}", "buttons": [{"text": "x"}, {"text": "{{é}}"}],
            }),
            &["body", "buttons.1.text", "footer", "header"],
        ),
        (
            with(&shipped(), "buttons", json!(vec![json!({}); 11])),
            &["buttons"],
        ),
        (with(&shipped(), "buttons", json!(["x"])), &["buttons.0"]),
    ];
    for (body, paths) in cases {
        let refused = app.post("message-templates", body).await.expect(422);
        assert_eq!(&refused.faulty(), paths, "{body}: {}", refused.text);
    }
    assert_eq!(app.count("message_templates").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn the_templates_that_can_be_sent_are_an_array_oldest_first() {
    let app = App::start().await;
    let list = format!("/api/v1/get_templates?store_id={}", app.store_id);
    assert_eq!(app.read(&list).await.expect(200).text, "[]");
    let made = app.post("message-templates", &shipped()).await.expect(201);
    let plain = app.template("a_plain_one", "Hello").await;
    let expected = json!([
        {
            "id": made.json()["id"], "name": "order_shipped", "language": "en_US",
            "variables": ["number", "first_name", "shop", "code"],
            "body": "Hello {{first_name}}, {{number}} is on its way",
        },
        { "id": plain, "name": "a_plain_one", "language": "en", "variables": [], "body": "Hello" },
    ]);
    assert_eq!(app.read(&list).await.expect(200).json(), expected);
    let (second, _) = app.another_store(None).await;
    let elsewhere = format!("/api/v1/get_templates?store_id={second}");
    assert_eq!(app.read(&elsewhere).await.expect(200).text, "[]");
    app.stop().await;
}

#[tokio::test]
async fn a_template_is_sent_by_its_store_alone_and_to_anybody() {
    let app = App::start().await;
    let id = app.post("message-templates", &shipped()).await.expect(201);
    let id = id.json()["id"].as_i64().expect("an integer");
    let variables = json!({ "number": "7", "first_name": "Ada", "shop": "S", "code": "c" });
    let body = template_to(PHONE, id, &variables);
    // Nobody has written, and that does not matter.
    let sent = app.deliver(TEMPLATES, body.to_string()).await.expect(201);
    let message = app.message(&sent.json()["message_id"]).await;
    assert_eq!(
        (&message["type"], &message["to"]),
        (&json!("template"), &json!(PHONE))
    );
    let (_, key) = app.another_store(None).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let elsewhere = app
        .send(Method::POST, TEMPLATES, &headers, body.to_string())
        .await;
    assert_eq!(elsewhere.expect(404).code(), "template_not_found");
    let mut unknown = template_to(PHONE, i64::MAX, &variables);
    unknown["store_id"] = json!(app.store_id);
    let unknown = app.deliver(TEMPLATES, unknown.to_string()).await;
    assert_eq!(unknown.expect(404).code(), "template_not_found");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_make_one_template_one_creates_it() {
    let app = App::start().await;
    let body = shipped();
    let posts = (0..16).map(|_| app.post("message-templates", &body));
    let answers = futures_util::future::join_all(posts).await;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(created, 1);
    for answer in answers {
        assert!(
            ["created", "unchanged"].contains(&answer.outcome()),
            "{}",
            answer.text
        );
    }
    assert_eq!(app.count("message_templates").await, 1);
    app.stop().await;
}
