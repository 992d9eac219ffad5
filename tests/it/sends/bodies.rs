//! What the two sending endpoints take.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};

/// Sends each body and compares the paths of the faults that it is answered with.
async fn assert_faults(app: &App, path: &str, cases: &[(Value, &[&str])]) {
    for (body, paths) in cases {
        let refused = app.deliver(path, body.to_string()).await;
        assert_eq!(refused.status, 422, "{body}: {}", refused.text);
        assert_eq!(refused.code(), "validation_failed", "{body}");
        assert_eq!(&refused.faulty(), paths, "{body}: {}", refused.text);
    }
    assert_eq!(app.count("messages").await, 0);
}

#[tokio::test]
async fn every_faulty_field_of_a_free_form_message_is_named_at_once() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let link = "https://cdn.example/file";
    let long = "x".repeat(1_025);
    assert_faults(
        &app,
        SEND,
        &[
            (json!({}), &["to", "type"]),
            (json!([]), &[""]),
            (json!([{"to": PHONE}]), &[""]),
            (json!("text"), &[""]),
            (json!(null), &[""]),
            (json!({"to": PHONE, "type": "text"}), &["text"]),
            (
                json!({"to": PHONE, "type": "text", "text": null}),
                &["text"],
            ),
            (
                json!({"to": PHONE, "type": "text", "text": "Hello"}),
                &["text"],
            ),
            (
                json!({"to": PHONE, "type": "text", "text": ["Hello"]}),
                &["text"],
            ),
            (
                json!({"to": PHONE, "type": "text", "text": {}}),
                &["text.body"],
            ),
            (
                json!({"to": PHONE, "type": "text", "text": {"body": 1}}),
                &["text.body"],
            ),
            (text_to(PHONE, ""), &["text.body"]),
            (text_to(PHONE, " \n\t"), &["text.body"]),
            (text_to(PHONE, "a\0b"), &["text.body"]),
            (text_to("", "Hello"), &["to"]),
            (text_to("nobody", "Hello"), &["to"]),
            // No country says how to read it.
            (text_to("06 12 34 56 78", "Hello"), &["to"]),
            (text_to("+33612345678;ext=1", "Hello"), &["to"]),
            (
                json!({"to": 33_612_345_678_i64, "type": ["text"], "text": {"body": "Hello"}}),
                &["to", "type"],
            ),
            (json!({"to": PHONE, "type": "sticker"}), &["type"]),
            (
                json!({"to": PHONE, "type": "template", "text": {"body": "x"}}),
                &["type"],
            ),
            (
                json!({
                    "to": "nobody", "type": "text", "text": {"body": "", "preview": true},
                    "store_id": 0, "unknown": 1,
                }),
                &["store_id", "text.body", "text.preview", "to", "unknown"],
            ),
            (
                json!({
                    "to": PHONE, "type": "text", "text": {"body": "Hello"},
                    "image": {"link": link}, "audio": {"link": link},
                }),
                &["audio", "image"],
            ),
            (json!({"to": PHONE, "type": "image"}), &["image"]),
            (
                json!({"to": PHONE, "type": "image", "image": {}}),
                &["image.link"],
            ),
            (
                json!({
                    "to": PHONE, "type": "image",
                    "image": {"link": "ftp://cdn.example", "caption": long, "id": 1},
                }),
                &["image.caption", "image.id", "image.link"],
            ),
            (
                json!({"to": PHONE, "type": "video", "video": {"link": "/file", "caption": 1}}),
                &["video.caption", "video.link"],
            ),
            (
                json!({"to": PHONE, "type": "audio", "audio": {"link": link, "caption": "x"}}),
                &["audio.caption"],
            ),
            (
                json!({"to": PHONE, "type": "document", "text": {"body": "x"}}),
                &["document", "text"],
            ),
        ],
    )
    .await;
    app.stop().await;
}

#[tokio::test]
async fn every_faulty_field_of_a_template_message_is_named_at_once() {
    let app = App::start().await;
    let id = app.template("hello", "Hello {{first_name}}, {{url}}").await;
    let full = json!({"first_name": "Ada", "url": "u"});
    let mut cases: Vec<(Value, &[&str])> = vec![
        (json!({}), &["phone_number", "template_id"]),
        (json!([]), &[""]),
        (
            json!({"template_id": "1", "phone_number": "nobody", "variables": [], "to": PHONE}),
            &["phone_number", "template_id", "to", "variables"],
        ),
        (
            template_to(PHONE, id, &json!({"first_name": 1, "url": {"a": "b"}})),
            &["variables.first_name", "variables.url"],
        ),
        (
            template_to(
                PHONE,
                id,
                &json!({"first_name": "x".repeat(1_025), "url": "a\0"}),
            ),
            &["variables.first_name", "variables.url"],
        ),
        // What is missing and what is unknown, together.
        (
            template_to(PHONE, id, &json!({"first": "Ada", "url": "u"})),
            &["variables.first", "variables.first_name"],
        ),
        (
            json!({"template_id": id, "phone_number": PHONE}),
            &["variables.first_name", "variables.url"],
        ),
    ];
    for wrong in [json!(0), json!(-1), json!(1.5), json!("1"), json!([1])] {
        let mut body = template_to(PHONE, id, &full);
        body["template_id"] = wrong;
        cases.push((body, &["template_id"]));
    }
    let mut person = template_to(PHONE, id, &full);
    person["name"] = json!("n".repeat(256));
    person["email"] = json!("nobody");
    cases.push((person, &["email", "name"]));
    assert_faults(&app, TEMPLATES, &cases).await;
    assert_eq!(app.count("contacts").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_member_that_comes_twice_is_malformed_at_any_depth() {
    let app = App::start().await;
    for body in [
        r#"{"to":"+33612345678","to":"+33612345678","type":"text","text":{"body":"x"}}"#,
        r#"{"to":"+33612345678","type":"text","text":{"body":"x","body":"y"}}"#,
        r#"{"unknown":[{"a":1,"a":1}]}"#,
        "{",
        "",
    ] {
        let headers = [("content-type", "application/json")];
        let refused = app.send(Method::POST, SEND, &headers, body).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
    }
    let twice = r#"{"template_id":1,"phone_number":"+33612345678","variables":{"a":"1","a":"1"}}"#;
    app.deliver(TEMPLATES, twice).await.expect(400);
    app.stop().await;
}

#[tokio::test]
async fn texts_are_taken_up_to_their_length_in_characters() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    // Two bytes a character.
    let text = |length: usize| text_to(PHONE, &"é".repeat(length)).to_string();
    app.deliver(SEND, text(4_096)).await.expect(201);
    let refused = app.deliver(SEND, text(4_097)).await.expect(422);
    assert_eq!(refused.faulty(), ["text.body"]);
    for kind in ["image", "video", "document"] {
        let media = |length: usize| {
            let part = json!({ "link": "https://cdn.example/file", "caption": "é".repeat(length) });
            let mut body = json!({ "to": PHONE, "type": kind });
            body[kind] = part;
            body.to_string()
        };
        let sent = app.deliver(SEND, media(1_024)).await.expect(201).json();
        assert_eq!(app.message(&sent["message_id"]).await["type"], kind);
        let refused = app.deliver(SEND, media(1_025)).await.expect(422);
        assert_eq!(refused.faulty(), [format!("{kind}.caption")]);
    }
    let audio = json!({
        "to": PHONE, "type": "audio", "audio": { "link": "https://cdn.example/file" },
    });
    app.deliver(SEND, audio.to_string()).await.expect(201);
    assert_eq!(app.count("messages").await, 5);
    app.stop().await;
}

#[tokio::test]
async fn null_is_left_out_and_a_template_keeps_what_it_says_of_the_person() {
    let app = App::start().await;
    let id = app.template("hello", "Hello").await;
    let body = json!({
        "template_id": id, "phone_number": PHONE, "variables": null, "name": null, "email": null,
        "store_id": null,
    });
    app.deliver(TEMPLATES, body.to_string()).await.expect(201);
    let mut named = template_to(PHONE, id, &json!({}));
    named["name"] = json!("Ada");
    named["email"] = json!("ada@example.com");
    for body in [&named, &body] {
        app.deliver(TEMPLATES, body.to_string()).await.expect(201);
        let kept: (String, String) = sqlx::query_as("select name, email from contacts")
            .fetch_one(&app.pool)
            .await
            .expect("one contact with both");
        assert_eq!(kept, ("Ada".to_owned(), "ada@example.com".to_owned()));
    }
    app.stop().await;
}

#[tokio::test]
async fn null_is_left_out_of_a_free_form_message_too() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let mut body = text_to(PHONE, "Hello");
    for member in ["image", "video", "audio", "document", "store_id"] {
        body[member] = Value::Null;
    }
    app.deliver(SEND, body.to_string()).await.expect(201);
    let audio = json!({
        "to": PHONE, "type": "audio", "text": null,
        "audio": { "link": "https://cdn.example/file", "caption": null },
    });
    app.deliver(SEND, audio.to_string()).await.expect(201);
    app.stop().await;
}

#[tokio::test]
async fn a_number_in_any_spelling_is_one_contact() {
    let app = App::start().await;
    app.hear_from("+33 6 12 34 56 78", "Hello").await;
    let mut contacts = std::collections::BTreeSet::new();
    for spelling in ["+33612345678", "+33 6 12 34 56 78", "+33 (0)6-12-34-56-78"] {
        let sent = app
            .deliver(SEND, text_to(spelling, "Hello").to_string())
            .await;
        let sent = sent.expect(201).json();
        assert_eq!(sent["to"], PHONE, "{spelling}");
        contacts.insert(sent["contact_id"].to_string());
    }
    assert_eq!(contacts.len(), 1);
    app.stop().await;
}
