//! Which requests are repeats: rules 1 to 5.

use http::Method;
use keyfold::tenancy;
use serde_json::json;

use crate::support::app::{self, App};
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};
use crate::support::rows::snapshot;
use crate::support::scale::eventually;

/// Headers that a replay repeats.
const REPEATED: [&str; 2] = ["content-type", "location"];

async fn app_with_open_window() -> App {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    app
}

#[tokio::test]
async fn a_repeated_send_gets_the_first_answer_byte_for_byte_and_sends_nothing() {
    let app = app_with_open_window().await;
    let template = app.template("hello", "Hello").await;
    let sends = [
        (SEND, text_to(PHONE, "Hello")),
        (TEMPLATES, template_to(PHONE, template, &json!({}))),
    ];
    for (count, (path, body)) in (1..).zip(sends) {
        let first = app.keyed(path, "k-1", body.to_string()).await.expect(201);
        assert_eq!(first.headers.get("idempotent-replayed"), None);
        let accepted = first.json();
        let expected = json!({
            "message_id": accepted["message_id"], "status": "queued", "store_id": app.store_id,
            "to": PHONE, "contact_id": accepted["contact_id"],
            "created_at": accepted["created_at"],
        });
        assert_eq!(accepted, expected);
        assert_eq!(first.header("content-type"), "application/json");
        // The answer tells how it was then, also when it has gone on since.
        app.message_becomes(&accepted["message_id"], "delivered")
            .await;
        for _ in 0..3 {
            let again = app.keyed(path, "k-1", body.to_string()).await.expect(201);
            assert_eq!(again.text, first.text);
            assert_eq!(again.header("idempotent-replayed"), "true");
            for name in REPEATED {
                assert_eq!(again.headers.get(name), first.headers.get(name), "{name}");
            }
            let [mine, firsts] = [&again, &first].map(|answer| answer.header("x-request-id"));
            assert!(!mine.is_empty() && mine != firsts, "{mine} and {firsts}");
        }
        assert_eq!(app.count("messages").await, count);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_replay_echoes_the_request_id_of_its_own_request() {
    let app = app_with_open_window().await;
    let body = text_to(PHONE, "Hello").to_string();
    app.keyed(SEND, "k", body.as_str()).await.expect(201);
    let headers = [("idempotency-key", "k"), ("x-request-id", "second")];
    let again = app.send(Method::POST, SEND, &headers, body).await;
    assert_eq!(again.expect(201).header("x-request-id"), "second");
    app.stop().await;
}

#[tokio::test]
async fn the_location_of_a_first_answer_and_of_its_replay_can_be_fetched_as_it_is() {
    let app = app_with_open_window().await;
    let body = text_to(PHONE, "Hello").to_string();
    for _ in 0..2 {
        let answer = app.keyed(SEND, "k", body.as_str()).await.expect(201);
        let message = app.read(answer.header("location")).await.expect(200);
        assert_eq!(message.json()["message_id"], answer.json()["message_id"]);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_key_with_another_body_is_refused_and_its_record_stays_as_it_was() {
    let app = app_with_open_window().await;
    let body = text_to(PHONE, "Hello").to_string();
    let first = app.keyed(SEND, "k", body.as_str()).await.expect(201);
    let stored = app.stored_keys().await;
    let others = [
        text_to(PHONE, "Hello!").to_string(),
        // The same JSON, but not the same bytes.
        format!("{body} "),
        format!(" {body}"),
        body.replace(':', ": "),
        format!(
            r#"{{"to":"{PHONE}","type":"text","store_id":{},"text":{{"body":"Hello"}}}}"#,
            app.store_id
        ),
    ];
    for other in others {
        let refused = app.keyed(SEND, "k", other.as_str()).await.expect(409);
        assert_eq!(refused.code(), "idempotency_key_mismatch", "{other}");
        assert_eq!(refused.headers.get("idempotent-replayed"), None);
    }
    assert_eq!(app.stored_keys().await, stored);
    let again = app.keyed(SEND, "k", body).await.expect(201);
    assert_eq!(again.text, first.text);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_key_has_1_to_255_visible_characters_and_quotes_around_it_do_not_count() {
    let app = app_with_open_window().await;
    let body = text_to(PHONE, "Hello").to_string();
    let longest = "k".repeat(255);
    let quoted = format!("\"{longest}\"");
    for (count, (sent, repeated)) in [
        ("a", "\"a\""),
        (longest.as_str(), quoted.as_str()),
        ("\"quoted\"", "quoted"),
        // Quotes within, or only one, are part of the key.
        ("in\"side", "\"in\"side\""),
        ("\"", "\"\"\""),
        ("A", "A"),
        ("!~", "\"!~\""),
    ]
    .into_iter()
    .enumerate()
    {
        let first = app.keyed(SEND, sent, body.as_str()).await.expect(201);
        let again = app.keyed(SEND, repeated, body.as_str()).await.expect(201);
        assert_eq!(first.headers.get("idempotent-replayed"), None, "{sent}");
        assert_eq!(again.header("idempotent-replayed"), "true", "{sent}");
        assert_eq!(again.text, first.text);
        let sent = i64::try_from(count).expect("few") + 1;
        assert_eq!(app.count("messages").await, sent);
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_nothing_is_stored() {
    let app = app_with_open_window().await;
    let template = app.template("hello", "Hello").await;
    let before = snapshot(&app.pool).await;
    let too_long = "k".repeat(256);
    let quoted = format!("\"{too_long}\"");
    for keys in [
        &[&b""[..]][..],
        &[b"   "],
        &[b"\"\""],
        &[b"a b"],
        &[b"\" \""],
        &[b"a\tb"],
        &["é".as_bytes()],
        &[b"\xff"],
        &[too_long.as_bytes()],
        &[quoted.as_bytes()],
        &[b"one", b"two"],
        &[b"same", b"same"],
    ] {
        for (path, body) in [
            (SEND, text_to(PHONE, "Hello")),
            (TEMPLATES, template_to(PHONE, template, &json!({}))),
        ] {
            let refused = app.with_keys(path, keys, &body.to_string()).await;
            assert_eq!(refused.status, 400, "{keys:?}: {}", refused.text);
            assert_eq!(refused.code(), "idempotency_key_invalid");
        }
    }
    assert_eq!(snapshot(&app.pool).await, before);
    app.stop().await;
}

#[tokio::test]
async fn one_key_means_something_else_at_each_endpoint_and_in_each_store() {
    let app = app_with_open_window().await;
    let template = app.template("hello", "Hello").await;
    let (store_id, key) = app.another_store(None).await;
    let only_first = app::key(&app.pool, &app.clock, app.team_id, Some(app.store_id)).await;
    let said = json!({ "from": PHONE, "text": "Hello" }).to_string();
    let inbound = format!("/api/v1/stores/{store_id}/sandbox/inbound");
    let [first_bearer, second_bearer] = [&only_first.1, &key].map(|key| format!("Bearer {key}"));
    let of_second = [("authorization", second_bearer.as_str())];
    let heard = app.send(Method::POST, &inbound, &of_second, said).await;
    heard.expect(204);

    let body = text_to(PHONE, "Hello").to_string();
    let template = template_to(PHONE, template, &json!({})).to_string();
    let mut ids = Vec::new();
    for (path, bearer, body) in [
        (SEND, &first_bearer, &body),
        (TEMPLATES, &first_bearer, &template),
        (SEND, &second_bearer, &body),
    ] {
        let headers = [("idempotency-key", "k"), ("authorization", bearer.as_str())];
        let first = app.send(Method::POST, path, &headers, body.as_str()).await;
        let first = first.expect(201);
        assert_eq!(first.headers.get("idempotent-replayed"), None);
        let again = app.send(Method::POST, path, &headers, body.as_str()).await;
        assert_eq!(again.expect(201).text, first.text);
        ids.push(first.json()["message_id"].clone());
    }
    assert_eq!(app.count("messages").await, 3);
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    app.stop().await;
}

#[tokio::test]
async fn a_new_api_key_replays_what_a_revoked_one_sent() {
    let app = app_with_open_window().await;
    let body = text_to(PHONE, "Hello").to_string();
    let (old_id, old) = app::key(&app.pool, &app.clock, app.team_id, None).await;
    let [old, new] = [old, app.key.clone()].map(|key| format!("Bearer {key}"));
    let with = |bearer: String| {
        let (app, body) = (&app, body.as_str());
        async move {
            let headers = [("idempotency-key", "k"), ("authorization", bearer.as_str())];
            app.send(Method::POST, SEND, &headers, body).await
        }
    };
    let first = with(old.clone()).await.expect(201);
    tenancy::revoke_key(&app.pool, old_id, app.clock.now())
        .await
        .expect("the statement runs")
        .expect("it was there");
    eventually("the old key is refused", || async {
        (with(old.clone()).await.status == 401).then_some(())
    })
    .await;
    let again = with(new).await.expect(201);
    assert_eq!(again.text, first.text);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}
