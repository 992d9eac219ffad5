//! "Slow down": the message was certainly not taken, so it waits and is sent, once.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::support::app::App;
use crate::support::meta::{Behaviour, Meta, Reply, Then};
use crate::support::whatsapp::{
    ADA, Days, another_store, calls_of, course, hear_from, left, message, pass, pass_days,
    send_text, start, until, until_put_back,
};

/// The ways in which the provider says so, and the reason that the outbox shows.
fn slow_downs() -> Vec<(Behaviour, String)> {
    let plain = Reply::plain(429);
    let mut all = vec![
        (
            Behaviour::refuse(Then::Answer(plain.clone())),
            "http_429".to_owned(),
        ),
        (
            Behaviour::refuse(Then::Answer(plain.with("retry-after", "30"))),
            "http_429".to_owned(),
        ),
    ];
    for (code, http) in [
        (4, 400),
        (80_007, 400),
        (130_429, 400),
        (130_429, 429),
        (130_429, 500),
        (131_056, 400),
        (133_016, 400),
    ] {
        all.push((Behaviour::error(code, http), code.to_string()));
    }
    all
}

async fn due_at(app: &App, id: Uuid) -> DateTime<Utc> {
    sqlx::query_scalar("select due_at from outbox where id = $1")
        .bind(id)
        .fetch_one(&app.pool)
        .await
        .expect("it waits")
}

#[tokio::test]
async fn a_slow_down_is_waited_out_and_the_message_is_sent_once() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let days = Days::of(&meta);
    let mut sent = Vec::new();
    for (behaviour, code) in slow_downs() {
        let store_id = another_store(&app).await;
        days.set(store_id, behaviour);
        hear_from(&app, store_id, &[ADA]).await;
        let before = app.clock.now();
        let id = send_text(&app, store_id, ADA).await;
        sent.push((store_id, id, code, before));
    }
    for (store_id, id, code, before) in &sent {
        until_put_back(&app, *id, code).await;
        // Four seconds at least: 5 s, a fifth of it more or less.
        assert!(
            due_at(&app, *id).await - before >= TimeDelta::seconds(4),
            "{code}"
        );
        let message = message(&app, *store_id, *id).await;
        let expected = json!({ "status": "queued", "code": null, "timeline": ["queued"] });
        assert_eq!(course(&message), expected, "{code}");
    }
    meta.behave(|_| Behaviour::accept());
    let stores: Vec<i64> = sent.iter().map(|(store_id, ..)| *store_id).collect();
    pass(&app, &stores, TimeDelta::minutes(1)).await;
    for (store_id, id, code, _) in &sent {
        let message = until(&app, *store_id, *id, "sent").await;
        let expected = json!({ "status": "sent", "code": null, "timeline": ["queued", "sent"] });
        assert_eq!(course(&message), expected, "{code}");
    }
    pass_days(&app, &stores).await;
    for (store_id, id, code, _) in &sent {
        let calls = calls_of(&meta, *store_id);
        // Each attempt has a reference of its own.
        let references: Vec<String> = calls.iter().map(|call| call.reference()).collect();
        let expected = [1, 2].map(|attempt| format!("{store_id}:{id}:{attempt}"));
        assert_eq!(references, expected, "{code}");
        assert_eq!(left(&app, *id).await, None, "{code}");
    }
    assert_eq!(meta.taken().len(), sent.len());
    app.stop().await;
}

#[tokio::test]
async fn a_wait_that_the_provider_asks_for_is_kept() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let reply = Reply::error(130_429, 429).with("retry-after", "3000");
    meta.behave(move |_| Behaviour::refuse(Then::Answer(reply.clone())));
    hear_from(&app, app.store_id, &[ADA]).await;
    let before = app.clock.now();
    let id = send_text(&app, app.store_id, ADA).await;
    until_put_back(&app, id, "130429").await;
    assert!(due_at(&app, id).await - before >= TimeDelta::seconds(3_000));
    meta.behave(|_| Behaviour::accept());
    pass(&app, &[app.store_id], TimeDelta::minutes(25)).await;
    assert_eq!(meta.calls().len(), 1, "25 of 50 minutes");
    pass(&app, &[app.store_id], TimeDelta::minutes(30)).await;
    until(&app, app.store_id, id, "sent").await;
    assert_eq!(meta.calls().len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn waits_grow_from_one_slow_down_to_the_next() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    meta.behave(|_| Behaviour::error(131_056, 400));
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    for (attempt, seconds) in [(1, 5), (2, 15), (3, 60), (4, 300), (5, 900)] {
        let waiting = ("waiting".to_owned(), attempt, Some("131056".to_owned()));
        crate::support::scale::eventually("the next attempt", || async {
            (left(&app, id).await.as_ref() == Some(&waiting)).then_some(())
        })
        .await;
        until_put_back(&app, id, "131056").await;
        // By the clock that moved, at least as long as the wait's shortest, measured from before
        // the attempt was settled.
        let wait = due_at(&app, id).await - app.clock.now();
        let most = TimeDelta::milliseconds(seconds * 1_200);
        assert!(wait <= most, "attempt {attempt}: {wait}");
        assert_eq!(meta.calls().len(), usize::try_from(attempt).expect("few"));
        app.clock.advance(most);
    }
    app.stop().await;
}
