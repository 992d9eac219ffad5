//! Exports through processes of their own: what only the end of one, or several of them, can show.

use std::collections::{BTreeMap, BTreeSet};

use keyfold::config::Config;
use keyfold::edge::Limits;
use serde_json::json;

use crate::support::app::App;
use crate::support::exports::{calls, configure, counts};
use crate::support::process::Process;
use crate::support::receiver::{Call, Receiver};
use crate::support::scale::{eventually, rounds};
use crate::support::whatsapp::SECRET_KEY;

const ORDERS: usize = 400;
/// Calls that a process can have under way.
const AT_ONCE: usize = 16;

/// A service that leaves the outbox and the events to other processes.
pub(super) async fn idle() -> App {
    let idle = |config: &mut Config| {
        configure(config);
        config.works = false;
    };
    App::start_with(idle, Limits::default()).await
}

fn process(app: &App) -> Process {
    let settings = [
        ("KEYFOLD_SECRET_KEY", SECRET_KEY),
        ("KEYFOLD_ALLOW_PRIVATE_TARGETS", "127.0.0.1"),
    ];
    Process::serve_with(&app.database_url, &settings)
}

/// What a killed process had leased is free at once, not only when the lease has run out.
async fn expire_leases(app: &App) {
    sqlx::query("update outbox set lease_until = now() - interval '1 s'")
        .execute(&app.pool)
        .await
        .expect("done");
}

/// The keys under which each record was sent.
fn keys(calls: &[Call]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut keys: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for call in calls {
        keys.entry(&call.target).or_default().insert(call.key());
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_process_is_killed_goes_on_and_repeats_only_what_was_under_way() {
    let (app, receiver) = (idle().await, Receiver::start().await);
    app.push_many(ORDERS).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    let run = app.run().await;
    let kills = rounds(6);
    for kill in 1..=kills {
        let running = process(&app);
        calls(&receiver, kill * ORDERS / (kills + 1)).await;
        running.kill();
        expire_leases(&app).await;
    }
    let last = process(&app);
    let done = app.completed(&run).await;
    assert_eq!(done["total"], json!(ORDERS));
    let [sent, skipped, failed] = counts(&done);
    assert_eq!((sent + skipped, failed), (ORDERS as i64, 0));
    let all = receiver.calls();
    let keys = keys(&all);
    assert_eq!(keys.len(), ORDERS, "each record was sent");
    assert!(keys.values().all(|keys| keys.len() == 1), "under one key");
    // What was taken and not yet written down is called again.
    let most = ORDERS + kills * (AT_ONCE + 32);
    assert!((ORDERS..=most).contains(&all.len()), "{}", all.len());
    assert_eq!(app.log().await.len(), 200, "a page");
    assert_eq!(app.count("export_log").await, ORDERS as i64);
    app.exported().await;
    assert_eq!(app.count("outbox").await, 0);
    assert_eq!(app.deliveries().await, [json!(null); 0]);
    drop(last);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_survive_kills_and_the_last_state_arrives_whoever_works() {
    let (app, receiver) = (idle().await, Receiver::start().await);
    app.export(&receiver, &json!({})).await;
    let mut processes = vec![process(&app), process(&app)];
    for round in 0..rounds(6) {
        for n in 0..40 {
            app.push(&format!("A-{n}"), &format!("{round}.00")).await;
        }
        let victim = processes.remove(0);
        victim.kill();
        expire_leases(&app).await;
        processes.push(process(&app));
    }
    app.exported().await;
    let total = format!("{}.00", rounds(6) - 1);
    let all = receiver.calls();
    for n in 0..40 {
        let target = format!("/orders/A-{n}");
        let of_record: Vec<_> = all.iter().filter(|call| call.target == target).collect();
        let last = of_record.last().expect("it was sent").json();
        assert_eq!(last["total_price"], total.as_str(), "{target}");
        // A key means one state of the record.
        let mut states: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for call in &of_record {
            let state = call.json()["total_price"].to_string();
            states.entry(call.key()).or_default().insert(state);
        }
        assert!(states.values().all(|states| states.len() == 1), "{target}");
    }
    eventually("nothing is left", || async {
        (app.count("outbox").await == 0).then_some(())
    })
    .await;
    app.stop().await;
}
