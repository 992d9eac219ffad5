//! A number that may not send for a while: its messages wait, and nobody else's do.

use chrono::TimeDelta;
use keyfold::messaging::channels::{self, Channel};
use keyfold::messaging::deliver;
use keyfold::outbox;
use serde_json::json;

use crate::support::app::App;
use crate::support::meta::{Behaviour, Meta};
use crate::support::whatsapp::{
    ADA, Days, another_store, calls_of, course, hear_from, left, message, number_of, pass,
    pass_days, send_text, start, until, until_put_back,
};

const BOB: &str = "+33612345679";

/// Codes that pause a channel, and for how many minutes.
const PAUSES: &[(i64, u16, i64)] = &[
    (190, 401, 15),
    (131_048, 400, 5),
    (0, 401, 15),
    (10, 403, 15),
    (200, 403, 15),
    (368, 403, 15),
    (131_031, 403, 15),
    (131_042, 400, 15),
    (131_057, 500, 5),
];

async fn assert_waits(app: &App, store_id: i64, id: uuid::Uuid) {
    let message = message(app, store_id, id).await;
    let expected = json!({ "status": "queued", "code": null, "timeline": ["queued"] });
    assert_eq!(course(&message), expected);
}

#[tokio::test]
async fn a_pause_holds_back_every_message_of_the_channel_and_ends_by_itself() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let days = Days::of(&meta);
    let mut paused = Vec::new();
    for (code, http, minutes) in PAUSES {
        let store_id = another_store(&app).await;
        days.set(store_id, Behaviour::error(*code, *http));
        hear_from(&app, store_id, &[ADA, BOB]).await;
        let before = app.clock.now();
        let first = send_text(&app, store_id, ADA).await;
        until_put_back(&app, first, &code.to_string()).await;
        let channel = shown(&app, store_id).await;
        assert_eq!(channel.paused_code, Some(code.to_string()));
        let wait = channel.paused_until.expect("paused") - before;
        let least = TimeDelta::minutes(*minutes);
        assert!(
            wait >= least && wait < least + TimeDelta::minutes(2),
            "{code}: {wait}"
        );
        // Whoever sends now is still answered 201.
        let second = send_text(&app, store_id, BOB).await;
        until_put_back(&app, second, "channel_paused").await;
        paused.push((store_id, first, second, code));
    }
    // Another store's messages leave.
    hear_from(&app, app.store_id, &[ADA]).await;
    let other = send_text(&app, app.store_id, ADA).await;
    until(&app, app.store_id, other, "sent").await;

    let stores: Vec<i64> = paused.iter().map(|(store_id, ..)| *store_id).collect();
    pass(&app, &stores, TimeDelta::minutes(2)).await;
    for (store_id, first, second, code) in &paused {
        assert_eq!(calls_of(&meta, *store_id).len(), 1, "{code}: paused");
        assert_waits(&app, *store_id, *first).await;
        assert_waits(&app, *store_id, *second).await;
    }
    meta.behave(|_| Behaviour::accept());
    pass(&app, &stores, TimeDelta::minutes(15)).await;
    for (store_id, first, second, _) in &paused {
        until(&app, *store_id, *first, "sent").await;
        until(&app, *store_id, *second, "sent").await;
    }
    pass_days(&app, &stores).await;
    for (store_id, _, _, code) in &paused {
        let mut reached: Vec<String> = calls_of(&meta, *store_id)[1..]
            .iter()
            .map(|call| call.to())
            .collect();
        reached.sort_unstable();
        assert_eq!(reached, [ADA, BOB], "{code}");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_operator_ends_a_pause_at_once() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let store_id = app.store_id;
    meta.behave(|_| Behaviour::error(190, 401));
    hear_from(&app, store_id, &[ADA, BOB]).await;
    let first = send_text(&app, store_id, ADA).await;
    until_put_back(&app, first, "190").await;
    let second = send_text(&app, store_id, BOB).await;
    until_put_back(&app, second, "channel_paused").await;

    meta.behave(|_| Behaviour::accept());
    channels::resume(&app.pool, store_id)
        .await
        .expect("resumed");
    let hurried = outbox::hurry(&app.pool, store_id, deliver::KIND, app.clock.now()).await;
    hurried.expect("hurried");
    for id in [first, second] {
        let sent = until(&app, store_id, id, "sent").await;
        let expected = json!({ "status": "sent", "code": null, "timeline": ["queued", "sent"] });
        assert_eq!(course(&sent), expected);
        assert_eq!(left(&app, id).await, None);
    }
    let channel = shown(&app, store_id).await;
    assert_eq!((channel.paused_until, channel.paused_code), (None, None));
    assert_eq!(channel.phone_number_id, Some(number_of(store_id)));
    pass_days(&app, &[store_id]).await;
    assert_eq!(meta.calls().len(), 3);
    app.stop().await;
}

/// A store's channel as an operator sees it.
async fn shown(app: &App, store_id: i64) -> Channel {
    let mut connection = app.state.pool.acquire().await.expect("a connection");
    let shown = channels::show(&mut connection, store_id).await;
    shown.expect("the channel is shown")
}
