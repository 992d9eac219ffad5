//! Statuses come late, twice and out of order, and end the same.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::meta::{Behaviour, Call, Gate, Meta, Reply, Then};
use crate::support::scale::eventually;
use crate::support::webhooks::{self, Told};
use crate::support::whatsapp::{
    ADA, another_store, course, hear_from, left, message, number_of, pass_days, send_text, start,
    until, until_put_back,
};

async fn tell(app: &App, store_id: i64, told: &[Told<'_>]) {
    let items: Vec<Value> = told.iter().map(Told::item).collect();
    let value = webhooks::value(&number_of(store_id), "statuses", &items);
    webhooks::tell(app, &[value]).await;
}

/// Status and second of each step.
fn steps(message: &Value) -> Vec<(String, i64)> {
    let steps = message["timeline"].as_array().expect("a timeline");
    let read = |step: &Value| {
        let at = step["at"].as_str().expect("a time");
        let at: DateTime<Utc> = at.parse().expect("RFC 3339");
        (
            step["status"].as_str().expect("a status").to_owned(),
            at.timestamp(),
        )
    };
    steps.iter().map(read).collect()
}

/// Every order of three things.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

#[tokio::test]
async fn every_order_of_statuses_ends_the_same_also_before_the_providers_own_answer() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let gate = Gate::closed();
    let held = gate.clone();
    meta.behave(move |_| Behaviour::accept_then(Then::ConfirmAfter(held.clone())));
    let mut sent = Vec::new();
    for n in 10..16 {
        let person = format!("+336123456{n}");
        hear_from(&app, app.store_id, &[&person]).await;
        sent.push(send_text(&app, app.store_id, &person).await);
    }
    eventually("all are called", || async {
        (meta.calls().len() == 6).then_some(())
    })
    .await;
    let mut calls: Vec<Call> = meta.calls();
    calls.sort_by_key(Call::to);
    let base = app.clock.now().timestamp() - 100;
    let expected = |queued: i64| {
        let at = |status: &str, second| (status.to_owned(), second);
        vec![
            at("queued", queued),
            at("sent", base),
            at("delivered", base + 1),
            at("read", base + 2),
        ]
    };
    for ((id, call), order) in sent.iter().zip(&calls).zip(ORDERS) {
        for which in order {
            let told = Told {
                id: &call.message_id(),
                reference: &call.reference(),
                status: ["sent", "delivered", "read"][which],
                at: base + i64::try_from(which).expect("few"),
                code: None,
            };
            // Twice in one event, and once more alone.
            tell(&app, app.store_id, &[told.clone(), told.clone()]).await;
            tell(&app, app.store_id, &[told]).await;
        }
        let message = message(&app, app.store_id, *id).await;
        assert_eq!(message["status"], "read", "{order:?}");
        let queued = steps(&message)[0].1;
        assert_eq!(steps(&message), expected(queued), "{order:?}");
        assert_eq!(message["version"], 4, "three changes, {order:?}");
        assert_eq!(message["provider_message_id"], call.message_id());
        assert_eq!(left(&app, *id).await, None);
    }
    // A service ends only when what is under way is settled.
    gate.open();
    let pool = app.pool.clone();
    app.stop().await;
    let versions: Vec<i64> = sqlx::query_scalar("select version from messages")
        .fetch_all(&pool)
        .await
        .expect("the messages can be read");
    assert_eq!(versions, [4; 6], "the answers told nothing new");
}

#[tokio::test]
async fn the_providers_own_answer_changes_nothing_that_a_status_said_before() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let gate = Gate::closed();
    let held = gate.clone();
    meta.behave(move |_| Behaviour::accept_then(Then::ConfirmAfter(held.clone())));
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    eventually("it is called", || async {
        (meta.calls().len() == 1).then_some(())
    })
    .await;
    let call = meta.calls().remove(0);
    let at = app.clock.now().timestamp();
    let told = |status| Told {
        id: "",
        reference: "",
        status,
        at,
        code: None,
    };
    let (wamid, reference) = (call.message_id(), call.reference());
    let named = |status| Told {
        id: &wamid,
        reference: &reference,
        ..told(status)
    };
    tell(&app, app.store_id, &[named("delivered")]).await;
    assert_eq!(message(&app, app.store_id, id).await["status"], "delivered");
    gate.open();
    // The answer itself says `sent`, which is news about the past.
    let settled = eventually("the answer is settled", || async {
        let message = message(&app, app.store_id, id).await;
        (message["version"] == 3).then_some(message)
    })
    .await;
    assert_eq!(settled["status"], "delivered");
    tell(&app, app.store_id, &[named("sent"), named("read")]).await;
    let settled = message(&app, app.store_id, id).await;
    assert_eq!(settled["status"], "read");
    let mut told: Vec<String> = steps(&settled)
        .into_iter()
        .map(|(status, _)| status)
        .collect();
    told.sort_unstable();
    assert_eq!(told, ["delivered", "queued", "read", "sent"], "one of each");
    app.stop().await;
}

#[tokio::test]
async fn unknown_is_settled_only_by_a_status_that_carries_the_stores_own_reference() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    meta.behave(|_| Behaviour::accept_then(Then::Reset));
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until(&app, app.store_id, id, "unknown").await;
    let call = meta.calls().remove(0);
    let other_store = another_store(&app).await;
    let (wamid, reference) = (call.message_id(), call.reference());
    let at = app.clock.now().timestamp();
    let told = |reference| Told {
        id: &wamid,
        reference,
        status: "sent",
        at,
        code: None,
    };
    // The provider's id was never heard of, and another store's number is no proof.
    tell(&app, app.store_id, &[told("")]).await;
    tell(&app, other_store, &[told(&reference)]).await;
    tell(&app, app.store_id, &[told("1:no-message:1")]).await;
    assert_eq!(message(&app, app.store_id, id).await["status"], "unknown");
    tell(&app, app.store_id, &[told(&reference)]).await;
    let sent = message(&app, app.store_id, id).await;
    let expected = json!({
        "status": "sent", "code": null,
        "timeline": ["queued", ["unknown", "connection_lost"], "sent"]
    });
    let mut shown = course(&sent);
    // The provider's second began before ours ended: its step may stand before.
    shown["timeline"]
        .as_array_mut()
        .expect("a list")
        .sort_by_key(|step| step == "sent");
    assert_eq!(shown, expected);
    assert_eq!(sent["provider_message_id"], wamid);
    assert_eq!(left(&app, id).await, None);
    // Now it is known by the provider's id too.
    let delivered = Told {
        status: "delivered",
        ..told("")
    };
    tell(&app, app.store_id, &[delivered]).await;
    assert_eq!(message(&app, app.store_id, id).await["status"], "delivered");
    app.stop().await;
}

#[tokio::test]
async fn a_failure_after_delivery_is_kept_but_what_arrived_has_arrived() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until(&app, app.store_id, id, "sent").await;
    let call = meta.calls().remove(0);
    let (wamid, at) = (call.message_id(), app.clock.now().timestamp());
    let told = |status, code| Told {
        id: &wamid,
        reference: "",
        status,
        at,
        code,
    };
    tell(&app, app.store_id, &[told("failed", Some(131_026))]).await;
    let failed = message(&app, app.store_id, id).await;
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("failed"), &json!("131026"))
    );
    tell(&app, app.store_id, &[told("delivered", None)]).await;
    let delivered = message(&app, app.store_id, id).await;
    assert_eq!(
        (&delivered["status"], &delivered["error"]),
        (&json!("delivered"), &json!(null))
    );
    assert_eq!(delivered["version"], 4);
    app.stop().await;
}

#[tokio::test]
async fn each_change_is_an_event_in_the_stores_feed() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until(&app, app.store_id, id, "sent").await;
    let call = meta.calls().remove(0);
    let (wamid, at) = (call.message_id(), app.clock.now().timestamp());
    for status in ["delivered", "delivered", "read", "delivered"] {
        let told = Told {
            id: &wamid,
            reference: "",
            status,
            at,
            code: None,
        };
        tell(&app, app.store_id, &[told]).await;
    }
    let page = app.get("events?resource=messages").await.expect(200).json();
    let events = page["data"].as_array().expect("a list");
    let kinds = [
        "message.created",
        "message.updated",
        "message.updated",
        "message.updated",
    ];
    let expected: Vec<Value> = kinds
        .iter()
        .zip(1..)
        .zip(events)
        .map(|((kind, version), event)| {
            json!({
                "position": event["position"], "id": event["id"], "type": kind,
                "resource": "messages", "record_id": id, "external_id": null,
                "version": version, "created_at": event["created_at"]
            })
        })
        .collect();
    assert_eq!(*events, expected);
    assert_eq!(message(&app, app.store_id, id).await["version"], 4);
    app.stop().await;
}

#[tokio::test]
async fn a_status_counts_also_when_the_answer_is_lost_after_it() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let gate = Gate::closed();
    let held = gate.clone();
    meta.behave(move |_| Behaviour::accept_then(Then::ResetAfter(held.clone())));
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    eventually("it is called", || async {
        (meta.calls().len() == 1).then_some(())
    })
    .await;
    let call = meta.calls().remove(0);
    let (wamid, reference) = (call.message_id(), call.reference());
    let told = Told {
        id: &wamid,
        reference: &reference,
        status: "sent",
        at: app.clock.now().timestamp(),
        code: None,
    };
    tell(&app, app.store_id, &[told]).await;
    gate.open();
    pass_days(&app, &[app.store_id]).await;
    let message = message(&app, app.store_id, id).await;
    let expected = json!({ "status": "sent", "code": null, "timeline": ["queued", "sent"] });
    assert_eq!(
        course(&message),
        expected,
        "that nobody knows is no news once somebody does"
    );
    assert_eq!(meta.calls().len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_was_taken_in_spite_of_a_slow_down_is_not_repeated_once_a_status_says_so() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    // A long wait, so that the status comes before it is over.
    let slower = Reply::plain(429).with("retry-after", "3600");
    meta.behave(move |_| Behaviour::accept_then(Then::Answer(slower.clone())));
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    until_put_back(&app, id, "http_429").await;
    let call = meta.calls().remove(0);
    let (wamid, reference) = (call.message_id(), call.reference());
    let told = Told {
        id: &wamid,
        reference: &reference,
        status: "delivered",
        at: app.clock.now().timestamp(),
        code: None,
    };
    tell(&app, app.store_id, &[told]).await;
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(message(&app, app.store_id, id).await["status"], "delivered");
    assert_eq!(left(&app, id).await, None);
    assert_eq!(meta.calls().len(), 1);
    app.stop().await;
}
