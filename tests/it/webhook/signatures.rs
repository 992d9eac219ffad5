//! Verification, and signatures over the bytes as they came.

use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::{Answer, App, answer};
use crate::support::meta::Meta;
use crate::support::rows;
use crate::support::webhooks::{
    self, APP_SECRET, From, PATH, SIGNATURE, VERIFY_TOKEN, event, post, post_raw, signature,
};
use crate::support::whatsapp::{ADA, another_store, number_of, start};

async fn verify(app: &App, query: &[(&str, &str)]) -> Answer {
    let request = app.client.get(format!("{}{PATH}", app.base)).query(query);
    answer(request.send().await.expect("the service answers")).await
}

/// The provider's question.
fn question(token: &str) -> [(&'static str, String); 3] {
    [
        ("hub.mode", "subscribe".to_owned()),
        ("hub.verify_token", token.to_owned()),
        ("hub.challenge", "11584&<b> 201444".to_owned()),
    ]
}

async fn ask(app: &App, token: &str) -> Answer {
    let question = question(token);
    let query: Vec<(&str, &str)> = question.iter().map(|(n, v)| (*n, v.as_str())).collect();
    verify(app, &query).await
}

#[tokio::test]
async fn the_right_verify_token_gets_the_challenge_back_and_others_nothing() {
    let app = start(&Meta::start().await).await;
    let right = ask(&app, VERIFY_TOKEN).await.expect(200);
    assert_eq!(right.text, "11584&<b> 201444");
    assert_eq!(right.header("content-type"), "text/plain; charset=utf-8");
    for wrong in ["", "x", &VERIFY_TOKEN[1..], &VERIFY_TOKEN.to_uppercase()] {
        let refused = ask(&app, wrong).await.expect(403);
        assert_eq!(refused.code(), "verification_refused");
        assert!(!refused.text.contains("11584"), "{}", refused.text);
    }
    verify(&app, &[]).await.expect(403);
    let mode = [
        ("hub.mode", "unsubscribe"),
        ("hub.verify_token", VERIFY_TOKEN),
    ];
    verify(&app, &mode).await.expect(403);
    app.stop().await;
}

#[tokio::test]
async fn without_a_verify_token_and_a_secret_nobody_is_let_in() {
    let app = App::start().await;
    for token in ["", "x", VERIFY_TOKEN] {
        ask(&app, token).await.expect(403);
    }
    let body = event(&[From::phone(ADA).writes("1", "wamid.1", "Hello", 1)]).to_string();
    for secret in ["", APP_SECRET] {
        let signed = signature(secret, body.as_bytes());
        let refused = post_raw(&app, &[(SIGNATURE, &signed)], body.clone()).await;
        assert_eq!(refused.expect(401).code(), "signature_invalid");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_not_signed_over_these_bytes_is_refused_and_leaves_nothing() {
    let app = start(&Meta::start().await).await;
    let number = number_of(app.store_id);
    let now = app.clock.now().timestamp();
    let body = event(&[From::phone(ADA).writes(&number, "wamid.1", "Hello", now)]).to_string();
    let right = signature(APP_SECRET, body.as_bytes());
    let altered = body.replace("Hello", "Hellp");
    let before = rows::texts(&app.pool).await;
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[], &body),
        (&[(SIGNATURE, "")], &body),
        (
            &[(SIGNATURE, &signature("another secret", body.as_bytes()))],
            &body,
        ),
        (&[(SIGNATURE, &right)], &altered),
        (&[(SIGNATURE, &right)], &format!("{body} ")),
        (&[(SIGNATURE, right.trim_start_matches("sha256="))], &body),
        (&[(SIGNATURE, &right.replace("sha256", "sha1"))], &body),
        (&[(SIGNATURE, &right[..right.len() - 1])], &body),
        (&[(SIGNATURE, &right), (SIGNATURE, &right)], &body),
        (&[("x-hub-signature", &right)], &body),
        // Not even what is no JSON is told from the rest.
        (&[(SIGNATURE, &right)], "{"),
    ];
    for (headers, body) in cases {
        let refused = post_raw(&app, headers, (*body).to_owned())
            .await
            .expect(401);
        assert_eq!(refused.code(), "signature_invalid", "{headers:?}");
    }
    assert_eq!(rows::texts(&app.pool).await, before);
    let taken = post_raw(
        &app,
        &[(SIGNATURE, &right.to_uppercase().replace("SHA", "sha"))],
        body,
    )
    .await;
    assert_eq!(taken.expect(200).json(), json!({ "received": true }));
    app.stop().await;
}

#[tokio::test]
async fn what_is_signed_and_no_json_is_refused() {
    let app = start(&Meta::start().await).await;
    for body in ["", "{", "nonsense", r#"{"a":1,"a":2}"#, "{}x"] {
        let signed = signature(APP_SECRET, body.as_bytes());
        post_raw(&app, &[(SIGNATURE, &signed)], body)
            .await
            .expect(400);
    }
    app.stop().await;
}

#[tokio::test]
async fn unknown_kinds_and_unknown_numbers_are_taken_and_leave_nothing() {
    let app = start(&Meta::start().await).await;
    let number = number_of(app.store_id);
    let before = rows::texts(&app.pool).await;
    let elsewhere = From::phone(ADA).writes("4711", "wamid.1", "Hello", 1);
    for odd in [
        json!({}),
        json!({ "entry": [] }),
        json!({ "entry": [{ "changes": [{ "field": "account_update", "value": { "event": "X" } }] }] }),
        json!({ "entry": [{ "changes": "soon" }, 7, null] }),
        json!([1, 2]),
        json!("text"),
        json!(null),
        event(&[webhooks::value(
            &number,
            "reactions",
            &[json!({ "id": "1" })],
        )]),
        event(&[webhooks::value(&number, "statuses", &[])]),
        event(&[elsewhere]),
    ] {
        let taken = post(&app, &odd).await.expect(200);
        assert_eq!(taken.json(), json!({ "received": true }), "{odd}");
    }
    assert_eq!(rows::texts(&app.pool).await, before);
    // Of known lists, what can't be understood is forgotten once it was looked at.
    let nonsense = [
        json!(null),
        json!(7),
        json!({}),
        json!({ "id": 7, "status": "sent" }),
        json!({ "id": "x", "status": "warped", "timestamp": "soon" }),
    ];
    for list in ["statuses", "messages", "user_preferences"] {
        webhooks::tell(&app, &[webhooks::value(&number, list, &nonsense)]).await;
    }
    for table in ["inbound_items", "contacts", "outbox", "messages"] {
        assert_eq!(app.count(table).await, 0, "{table}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_batch_of_two_hundred_for_two_stores_reaches_both() {
    let app = start(&Meta::start().await).await;
    let other = another_store(&app).await;
    let now = app.clock.now().timestamp();
    let values: Vec<Value> = (0..200)
        .map(|n| {
            let store_id = if n % 2 == 0 { app.store_id } else { other };
            let phone = format!("336123{n:05}");
            let id = format!("wamid.{n}");
            From::phone(&phone).writes(&number_of(store_id), &id, "Hello", now)
        })
        .collect();
    webhooks::tell(&app, &values).await;
    // Once more, as the provider does when it was answered late.
    webhooks::tell(&app, &values).await;
    let counts: Vec<(i64, i64)> = sqlx::query_as(
        "select store_id, count(*) from contacts where last_inbound_at is not null
        group by store_id order by store_id",
    )
    .fetch_all(&app.pool)
    .await
    .expect("counted");
    assert_eq!(counts, [(app.store_id, 100), (other, 100)]);
    assert_eq!(app.count("inbound_messages").await, 200);
    assert_eq!(app.count("inbound_items").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn an_event_is_taken_without_a_worker_and_looked_at_when_there_is_one() {
    let meta = Meta::start().await;
    let idle = App::start_with(
        |config| {
            crate::support::whatsapp::configure(config, &meta);
            config.works = false;
        },
        Limits::default(),
    )
    .await;
    crate::support::whatsapp::connect(&idle.pool, &idle.clock, idle.store_id).await;
    let number = number_of(idle.store_id);
    let now = idle.clock.now().timestamp();
    let written = From::phone(ADA).writes(&number, "wamid.1", "Hello", now);
    post(&idle, &event(&[written])).await.expect(200);
    assert_eq!(idle.count("inbound_items").await, 1);
    assert_eq!(idle.count("contacts").await, 0);
    let working = App::start_on(idle.database_url.clone(), |_| {}, Limits::default()).await;
    webhooks::all_looked_at(&idle).await;
    assert_eq!(idle.count("contacts").await, 1);
    assert_eq!(idle.count("inbound_items").await, 0);
    working.stop().await;
    idle.stop().await;
}

#[tokio::test]
async fn while_postgres_is_away_the_provider_is_asked_to_repeat() {
    let meta = Meta::start().await;
    let mut server = crate::support::database::OwnServer::start("webhook").await;
    let app = App::start_on(
        server.url.clone(),
        |config| crate::support::whatsapp::configure(config, &meta),
        Limits::default(),
    )
    .await;
    crate::support::whatsapp::connect(&app.pool, &app.clock, app.store_id).await;
    let number = number_of(app.store_id);
    let now = app.clock.now().timestamp();
    let written = event(&[From::phone(ADA).writes(&number, "wamid.1", "Hello", now)]);
    server.stop();
    let refused = post(&app, &written).await.expect(503);
    assert_eq!(refused.code(), "database_unavailable");
    server.start_again();
    crate::support::scale::eventually("it is taken", || async {
        (post(&app, &written).await.status == 200).then_some(())
    })
    .await;
    webhooks::all_looked_at(&app).await;
    assert_eq!(app.count("contacts").await, 1);
    app.stop().await;
}
