//! How fast messages leave: what is too much waits in the queue, never the caller.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use keyfold::messaging::channels;
use keyfold::messaging::deliver;
use keyfold::outbox;

use crate::support::meta::{Behaviour, Meta};
use crate::support::scale::eventually;
use crate::support::whatsapp::{ADA, hear_from, pause, send_text, start};

#[tokio::test]
async fn one_person_gets_a_burst_and_then_one_message_per_six_seconds() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let left_at = Arc::<Mutex<Vec<DateTime<Utc>>>>::default();
    let (stamps, clock) = (Arc::clone(&left_at), app.clock.clone());
    meta.behave(move |_| {
        stamps.lock().expect("no panic").push(clock.now());
        Behaviour::accept()
    });
    hear_from(&app, app.store_id, &[ADA, "+33612345679"]).await;
    let before = app.clock.now();
    for _ in 0..30 {
        send_text(&app, app.store_id, ADA).await;
    }
    eventually("the burst left", || async {
        (meta.calls().len() >= 10).then_some(())
    })
    .await;
    // One person's wait holds nobody else up.
    send_text(&app, app.store_id, "+33612345679").await;
    eventually("the other one has it", || async {
        let calls = meta.calls();
        calls.iter().any(|call| call.to() != ADA).then_some(())
    })
    .await;
    for n in 12..=31 {
        app.clock.advance(TimeDelta::seconds(6));
        eventually("the next one left", || async {
            (meta.calls().len() >= n).then_some(())
        })
        .await;
    }
    let calls = meta.calls();
    let stamps = left_at.lock().expect("no panic").clone();
    let hers: Vec<DateTime<Utc>> = calls
        .iter()
        .zip(stamps)
        .filter(|(call, _)| call.to() == ADA)
        .map(|(_, at)| at)
        .collect();
    assert_eq!(hers.len(), 30);
    for (n, at) in (1..).zip(&hers[10..]) {
        let least = TimeDelta::seconds(6 * n);
        assert!(
            *at - before >= least,
            "{} after the burst: {}",
            n,
            *at - before
        );
    }
    let mut references: Vec<String> = calls.iter().map(|call| call.reference()).collect();
    references.sort_unstable();
    references.dedup();
    assert_eq!(references.len(), 31, "each was sent once");
    app.stop().await;
}

#[tokio::test]
async fn one_number_sends_a_burst_and_then_eighty_a_second() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let left_at = Arc::<Mutex<Vec<DateTime<Utc>>>>::default();
    let (stamps, clock) = (Arc::clone(&left_at), app.clock.clone());
    meta.behave(move |_| {
        stamps.lock().expect("no panic").push(clock.now());
        Behaviour::accept()
    });
    let people: Vec<String> = (0..150).map(|n| format!("+33612345{n:03}")).collect();
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    hear_from(&app, app.store_id, &people).await;
    // All wait when the clock begins to count.
    let until = app.clock.now() + TimeDelta::hours(1);
    let paused = pause(&app.pool, app.store_id, until, "test").await;
    paused.expect("paused");
    for person in &people {
        send_text(&app, app.store_id, person).await;
    }
    let before = app.clock.now();
    let resumed = channels::resume(&app.pool, app.store_id).await;
    resumed.expect("resumed");
    let hurried = outbox::hurry(&app.pool, app.store_id, deliver::KIND, app.clock.now()).await;
    hurried.expect("hurried");
    eventually("all left", || async {
        // Those that were still being put back when all were hurried.
        let hurried = outbox::hurry(&app.pool, app.store_id, deliver::KIND, app.clock.now()).await;
        hurried.expect("hurried");
        (meta.calls().len() == people.len()).then_some(())
    })
    .await;
    let stamps = left_at.lock().expect("no panic").clone();
    for (n, at) in (1..).zip(&stamps[40..]) {
        let least = TimeDelta::microseconds(12_500 * n);
        assert!(
            *at - before >= least,
            "{n} after the burst: {}",
            *at - before
        );
    }
    let mut reached: Vec<String> = meta.calls().iter().map(|call| call.to()).collect();
    reached.sort_unstable();
    assert_eq!(reached, people, "each was sent once");
    app.stop().await;
}
