//! Messages that can't be handed over yet: the caller is answered, the message waits.

use chrono::TimeDelta;
use keyfold::edge::Limits;
use keyfold::engine::transaction::Transaction;
use keyfold::messaging::messages::{self, News};
use keyfold::outbox::{self, Wanted};
use serde_json::json;
use uuid::Uuid;

use crate::support::app::App;
use crate::support::database::OwnServer;
use crate::support::meta::{Behaviour, Gate, Meta, Then};
use crate::support::scale::eventually;
use crate::support::whatsapp::{
    ADA, configure, connect, course, hear_from, left, message, pass, pass_days, post_message,
    send_text, start, text, until, until_put_back,
};

#[tokio::test]
async fn an_unreachable_provider_fails_no_request_and_the_message_goes_out_later() {
    let meta = Meta::unreachable();
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until_put_back(&app, id, "unreachable").await;
    let waiting = message(&app, app.store_id, id).await;
    let expected = json!({ "status": "queued", "code": null, "timeline": ["queued"] });
    assert_eq!(course(&waiting), expected);
    meta.open();
    pass(&app, &[app.store_id], TimeDelta::minutes(5)).await;
    let sent = until(&app, app.store_id, id, "sent").await;
    let expected = json!({ "status": "sent", "code": null, "timeline": ["queued", "sent"] });
    assert_eq!(course(&sent), expected);
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(meta.calls().len(), 1);
    app.stop().await;
}

/// As `keyfold outbox retry` does it, by the clock that the test moved.
async fn retry(app: &App, id: Uuid) {
    let now = app.clock.now();
    let mut transaction = Transaction::begin(&app.state.pool)
        .await
        .expect("a transaction");
    let connection = transaction.connection();
    let revived = outbox::revive(&mut *connection, app.store_id, Some(&[id]), 1, now, now).await;
    assert_eq!(revived.expect("revived"), [id]);
    let news = News {
        id,
        event_id: app.clock.new_id(),
        steps: Vec::new(),
        provider_message_id: None,
        requeue: true,
    };
    let applied = messages::apply(connection, app.store_id, &[news], now).await;
    applied.expect("queued again");
    transaction.commit().await.expect("committed");
}

#[tokio::test]
async fn what_could_not_be_handed_over_for_a_day_has_failed_and_can_be_sent_again_by_hand() {
    let meta = Meta::unreachable();
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until_put_back(&app, id, "unreachable").await;
    pass(&app, &[app.store_id], TimeDelta::hours(23)).await;
    assert_eq!(message(&app, app.store_id, id).await["status"], "queued");
    until_put_back(&app, id, "unreachable").await;
    pass(&app, &[app.store_id], TimeDelta::hours(4)).await;
    let failed = until(&app, app.store_id, id, "failed").await;
    let given_up = json!(["failed", "not_sent_in_time"]);
    let expected = json!({
        "status": "failed", "code": "not_sent_in_time", "timeline": ["queued", given_up]
    });
    assert_eq!(course(&failed), expected);
    let dead = Wanted {
        store_id: Some(app.store_id),
        state: Some("dead"),
        limit: 10,
    };
    let listed = outbox::list(&app.pool, dead).await.expect("listed");
    let shown: Vec<_> = listed
        .iter()
        .map(|entry| (entry.id, entry.kind.as_str(), entry.error_code.as_deref()))
        .collect();
    assert_eq!(shown, [(id, "message", Some("not_sent_in_time"))]);

    meta.open();
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(meta.connections(), 0, "what is dead stays dead");
    retry(&app, id).await;
    let sent = until(&app, app.store_id, id, "sent").await;
    let expected = json!({
        "status": "sent", "code": null, "timeline": ["queued", given_up, "queued", "sent"]
    });
    assert_eq!(course(&sent), expected);
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(meta.calls().len(), 1);
    assert_eq!(left(&app, id).await, None);
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_was_accepted_for_the_sandbox_never_leaves_through_another_channel() {
    let meta = Meta::start().await;
    // Accepted by a process that hands nothing over.
    let idle = App::start_with(|config| config.works = false, Limits::default()).await;
    let inbound = json!({ "from": ADA, "text": "Hello" });
    idle.post("sandbox/inbound", &inbound).await.expect(204);
    let id = send_text(&idle, idle.store_id, ADA).await;
    connect(&idle.pool, &idle.clock, idle.store_id).await;
    let url = idle.database_url.clone();
    let working = App::start_on(url, |config| configure(config, &meta), Limits::default()).await;
    let failed = until(&idle, idle.store_id, id, "failed").await;
    let expected = json!({
        "status": "failed", "code": "channel_changed",
        "timeline": ["queued", ["failed", "channel_changed"]]
    });
    assert_eq!(course(&failed), expected);
    assert_eq!(meta.connections(), 0);
    working.stop().await;
    idle.stop().await;
}

#[tokio::test]
async fn a_token_that_can_not_be_opened_lets_messages_wait_until_it_can() {
    let meta = Meta::start().await;
    let app = App::start_with(
        |config| {
            configure(config, &meta);
            config.secret_key = None;
        },
        Limits::default(),
    )
    .await;
    connect(&app.pool, &app.clock, app.store_id).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until_put_back(&app, id, "access_token_unusable").await;
    assert_eq!(meta.connections(), 0);
    let url = app.database_url.clone();
    app.stop().await;
    let mended = App::start_on(url, |config| configure(config, &meta), Limits::default()).await;
    mended.clock.advance(TimeDelta::minutes(2));
    eventually("it goes out", || async {
        (meta.calls().len() == 1 && left(&mended, id).await.is_none()).then_some(())
    })
    .await;
    mended.stop().await;
}

#[tokio::test]
async fn an_answer_that_can_not_be_noted_because_postgres_is_away_is_noted_later() {
    let meta = Meta::start().await;
    let mut server = OwnServer::start("whatsapp").await;
    let url = server.url.clone();
    let app = App::start_on(url, |config| configure(config, &meta), Limits::default()).await;
    connect(&app.pool, &app.clock, app.store_id).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let gate = Gate::closed();
    let held = gate.clone();
    meta.behave(move |_| Behaviour::accept_then(Then::ConfirmAfter(held.clone())));
    let id = send_text(&app, app.store_id, ADA).await;
    eventually("it is called", || async {
        (meta.calls().len() == 1).then_some(())
    })
    .await;
    server.stop();
    gate.open();
    let body = text(app.store_id, ADA, "Hello");
    post_message(&app, &body).await.expect(503);
    server.start_again();
    eventually("Postgres answers again", || async {
        let path = format!("/api/v1/messages/{id}?store_id={}", app.store_id);
        let answer = app.send(http::Method::GET, &path, &[], "").await;
        (answer.status == 200).then_some(())
    })
    .await;
    let sent = until(&app, app.store_id, id, "sent").await;
    let expected = json!({ "status": "sent", "code": null, "timeline": ["queued", "sent"] });
    assert_eq!(course(&sent), expected);
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(meta.calls().len(), 1);
    app.stop().await;
}
