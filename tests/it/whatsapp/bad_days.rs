//! Days on which the caller can't know whether the message was taken.

use chrono::TimeDelta;
use serde_json::json;

use crate::support::meta::{Behaviour, Door, Gate, Meta, Reply, Then};
use crate::support::scale::eventually;
use crate::support::webhooks::{self, Told};
use crate::support::whatsapp::{
    ADA, Days, another_store, calls_of, course, hear_from, left, message, number_of, pass,
    pass_days, send_text, start, until,
};

/// Each bad day, and the reason that the message shows.
fn bad_days() -> Vec<(Behaviour, &'static str)> {
    let answer = |status| Then::Answer(Reply::plain(status));
    let elsewhere = Then::Answer(Reply::plain(302).with("location", "/1/messages"));
    vec![
        (Behaviour::refuse(answer(500)), "http_500"),
        (Behaviour::refuse(answer(503)), "http_503"),
        (Behaviour::accept_then(answer(500)), "http_500"),
        (Behaviour::accept_then(answer(502)), "http_502"),
        (Behaviour::refuse(elsewhere.clone()), "http_302"),
        (Behaviour::accept_then(elsewhere), "http_302"),
        (Behaviour::refuse(Then::Reset), "connection_lost"),
        (Behaviour::accept_then(Then::Reset), "connection_lost"),
        (Behaviour::accept_then(Then::CutJson), "answer_unreadable"),
        (
            Behaviour::accept_then(Then::CutConnection),
            "connection_lost",
        ),
        (
            Behaviour::accept_then(Then::Answer(Reply::json(200, &json!({ "messages": [] })))),
            "answer_unreadable",
        ),
        (Behaviour::refuse(Then::Silence), "timeout"),
        (Behaviour::accept_then(Then::Silence), "timeout"),
    ]
}

#[tokio::test]
async fn what_may_have_been_sent_is_unknown_and_never_sent_again() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let days = Days::of(&meta);
    let mut sent = Vec::new();
    for (behaviour, code) in bad_days() {
        let store_id = another_store(&app).await;
        days.set(store_id, behaviour.clone());
        hear_from(&app, store_id, &[ADA]).await;
        let id = send_text(&app, store_id, ADA).await;
        sent.push((store_id, id, behaviour, code));
    }
    for (store_id, id, behaviour, code) in &sent {
        let message = until(&app, *store_id, *id, "unknown").await;
        let expected = json!({
            "status": "unknown", "code": code, "timeline": ["queued", ["unknown", code]]
        });
        assert_eq!(course(&message), expected, "{behaviour:?}");
        assert_eq!(message["provider_message_id"], json!(null), "{behaviour:?}");
        let kept = left(&app, *id).await.expect("it can be seen");
        assert_eq!(kept, ("unknown".to_owned(), 1, Some((*code).to_owned())));
    }
    // From now on the provider is well: an attempt would not stay unnoticed.
    meta.behave(|_| Behaviour::accept());
    let stores: Vec<i64> = sent.iter().map(|(store_id, ..)| *store_id).collect();
    pass_days(&app, &stores).await;
    for (store_id, id, behaviour, _) in &sent {
        let calls = calls_of(&meta, *store_id);
        assert_eq!(calls.len(), 1, "{behaviour:?}");
        assert_eq!(message(&app, *store_id, *id).await["status"], "unknown");
        if !behaviour.takes {
            continue;
        }
        // Whoever has the message says so, and names it by our reference alone.
        let told = Told {
            id: &calls[0].message_id(),
            reference: &calls[0].reference(),
            status: "delivered",
            at: app.clock.now().timestamp(),
            code: None,
        };
        let value = webhooks::value(&number_of(*store_id), "statuses", &[told.item()]);
        webhooks::tell(&app, &[value]).await;
        let settled = message(&app, *store_id, *id).await;
        assert_eq!(settled["status"], "delivered", "{behaviour:?}");
        assert_eq!(settled["error"], json!(null), "{behaviour:?}");
        assert_eq!(settled["provider_message_id"], calls[0].message_id());
        assert_eq!(left(&app, *id).await, None, "nothing is left to be done");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_nobody_read_is_unknown_and_never_sent_again() {
    let meta = Meta::start().await;
    meta.set_door(Door::Deaf);
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    let unknown = until(&app, app.store_id, id, "unknown").await;
    assert_eq!(unknown["error"]["code"], "timeout");
    meta.set_door(Door::Open);
    pass_days(&app, &[app.store_id]).await;
    assert_eq!((meta.calls().len(), meta.connections()), (0, 1));
    app.stop().await;
}

#[tokio::test]
async fn a_connection_that_breaks_before_anything_was_read_ends_in_one_message_at_most() {
    let meta = Meta::start().await;
    meta.set_door(Door::Slammed);
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let id = send_text(&app, app.store_id, ADA).await;
    // The reset may come before the connection is seen to stand, which proves that nothing was
    // sent, or after it, which proves nothing.
    let is_unknown = eventually("it broke", || async {
        let (state, _, code) = left(&app, id).await?;
        code.map(|_| state == "unknown")
    })
    .await;
    meta.set_door(Door::Open);
    if !is_unknown {
        pass(&app, &[app.store_id], TimeDelta::hours(2)).await;
        until(&app, app.store_id, id, "sent").await;
    }
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(meta.calls().len(), usize::from(!is_unknown));
    app.stop().await;
}

#[tokio::test]
async fn a_resting_connection_that_the_provider_closes_costs_no_second_message() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let people: Vec<String> = (0..20).map(|n| format!("+336123456{n:02}")).collect();
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    hear_from(&app, app.store_id, &people).await;
    // Confirmed, and the connection is gone right after it, without a word.
    meta.behave(|_| Behaviour::accept_then(Then::ConfirmAndClose));
    for person in &people {
        let id = send_text(&app, app.store_id, person).await;
        // It may have been the next one that found the connection broken.
        eventually("it is settled", || async {
            let status = message(&app, app.store_id, id).await["status"].clone();
            (status != "queued").then_some(())
        })
        .await;
    }
    pass_days(&app, &[app.store_id]).await;
    let mut reached: Vec<String> = meta.calls().iter().map(|call| call.to()).collect();
    let calls = reached.len();
    reached.sort_unstable();
    reached.dedup();
    assert_eq!(reached.len(), calls, "nobody gets two");
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_comes_late_but_comes_is_believed() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let gate = Gate::closed();
    let held = gate.clone();
    meta.behave(move |_| Behaviour::accept_then(Then::ConfirmAfter(held.clone())));
    let id = send_text(&app, app.store_id, ADA).await;
    eventually("it is called", || async {
        (meta.calls().len() == 1).then_some(())
    })
    .await;
    assert_eq!(message(&app, app.store_id, id).await["status"], "queued");
    gate.open();
    let sent = until(&app, app.store_id, id, "sent").await;
    let expected = json!({ "status": "sent", "code": null, "timeline": ["queued", "sent"] });
    assert_eq!(course(&sent), expected);
    assert_eq!(sent["provider_message_id"], meta.calls()[0].message_id());
    app.stop().await;
}

#[tokio::test]
async fn a_message_whose_lease_ran_out_while_it_was_sent_is_not_sent_again() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    hear_from(&app, app.store_id, &[ADA]).await;
    let gate = Gate::closed();
    let held = gate.clone();
    meta.behave(move |_| Behaviour::accept_then(Then::ConfirmAfter(held.clone())));
    let id = send_text(&app, app.store_id, ADA).await;
    eventually("it is called", || async {
        (meta.calls().len() == 1).then_some(())
    })
    .await;
    // As if the process had been killed: its lease runs out, somebody else finds the mark.
    pass(&app, &[app.store_id], TimeDelta::minutes(5)).await;
    let unknown = until(&app, app.store_id, id, "unknown").await;
    assert_eq!(unknown["error"]["code"], "interrupted");
    // The first one was not dead, only slow.
    gate.open();
    let sent = until(&app, app.store_id, id, "sent").await;
    let expected = json!({
        "status": "sent", "code": null, "timeline": ["queued", ["unknown", "interrupted"], "sent"]
    });
    assert_eq!(course(&sent), expected);
    pass_days(&app, &[app.store_id]).await;
    assert_eq!(meta.calls().len(), 1);
    assert_eq!(left(&app, id).await, None);
    app.stop().await;
}
