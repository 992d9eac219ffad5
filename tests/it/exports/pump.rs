//! What happens beside calls that are under way: leases, changes of the export, refused notes.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use crate::support::app::App;
use crate::support::exports::{calls, export, order, start};
use crate::support::meta::Gate;
use crate::support::receiver::{Receiver, Says};
use crate::support::scale::eventually;

async fn sql(app: &App, statement: &'static str) {
    let done = sqlx::query(statement).execute(&app.pool).await;
    done.expect("our own statement");
}

async fn held_until(app: &App) -> Option<DateTime<Utc>> {
    let held = sqlx::query_scalar("select held_until from exports where external_id = 'erp'");
    held.fetch_one(&app.pool).await.expect("asked")
}

/// The first call is answered by this status when the gate opens, all others at once.
fn first_is_late(receiver: &Receiver, gate: &Gate, status: u16) {
    let gate = gate.clone();
    receiver.says(move |call| {
        if call.number == 0 {
            Says::Late(gate.clone(), status)
        } else {
            Says::Status(200)
        }
    });
}

#[tokio::test]
async fn a_lease_is_kept_while_the_database_is_slow() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({ "status": "paused" })).await;
    app.push("A", "1.00").await;
    app.exported().await;
    let mut transaction = app.pool.begin().await.expect("begun");
    sqlx::query("lock table orders in access exclusive mode")
        .execute(&mut *transaction)
        .await
        .expect("locked");
    // The record can't be loaded now.
    app.post("exports", &export(&receiver, &json!({})))
        .await
        .expect(200);
    let leased = || async {
        let until: Option<DateTime<Utc>> =
            sqlx::query_scalar("select max(lease_until) from outbox where kind = 'export'")
                .fetch_one(&app.pool)
                .await
                .expect("asked");
        until
    };
    let first = eventually("it is leased", leased).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    app.clock.advance(TimeDelta::seconds(30));
    eventually("the lease is extended", || async {
        leased()
            .await
            .filter(|until| *until > first + TimeDelta::seconds(20))
    })
    .await;
    assert_eq!(receiver.calls().len(), 0);
    transaction.rollback().await.expect("unlocked");
    calls(&receiver, 1).await;
    app.exported().await;
    assert_eq!(receiver.calls().len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn the_latest_entry_is_that_of_the_latest_success_whatever_its_id() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({})).await;
    for total in ["1.00", "2.00"] {
        app.push("A", total).await;
        app.exported().await;
    }
    // As if the first had been settled by a process whose clock was ahead.
    sql(
        &app,
        "update export_log set id = 'ffffffff-ffff-7fff-bfff-ffffffffffff'
        where id = (select id from export_log order by id limit 1)",
    )
    .await;
    assert_eq!(app.run_through().await, [0, 1, 0]);
    assert_eq!(receiver.calls().len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn a_busy_receiver_that_does_not_say_for_how_long_is_left_alone() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::Status(503));
    app.export(&receiver, &json!({})).await;
    app.push("A", "1.00").await;
    let held = eventually("it is held", || held_until(&app)).await;
    let wait = held - app.clock.now();
    assert!(wait > TimeDelta::seconds(2) && wait <= TimeDelta::seconds(5));
    app.push("B", "1.00").await;
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 1, "nothing else is sent meanwhile");
    app.clock.advance(TimeDelta::seconds(6));
    let again = eventually("it is held again", || async {
        held_until(&app).await.filter(|until| *until > held)
    })
    .await;
    assert!(
        again - app.clock.now() > TimeDelta::seconds(7),
        "for longer"
    );
    assert!(receiver.calls().len() <= 3);
    receiver.says(|_| Says::Status(200));
    app.clock.advance(TimeDelta::seconds(400));
    app.exported().await;
    assert_eq!(app.log().await.len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn saving_ends_a_wait_also_while_calls_are_under_way() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({})).await;
    let gate = Gate::closed();
    let held = gate.clone();
    receiver.says(move |call| match call.number {
        0 => Says::After(held.clone()),
        1 => Says::With(429, "retry-after", "600".to_owned()),
        _ => Says::Status(200),
    });
    app.push("A", "1.00").await;
    calls(&receiver, 1).await;
    app.push("B", "1.00").await;
    eventually("it is held", || held_until(&app)).await;
    // The pump has seen it by now, and waits for the other call.
    app.calls_have_come().await;
    let saved = app.post("exports", &export(&receiver, &json!({}))).await;
    assert_eq!(saved.expect(200).outcome(), "unchanged");
    app.push("C", "1.00").await;
    app.calls_have_come().await;
    gate.open();
    assert_eq!(calls(&receiver, 3).await[2].external_id(), "C");
    app.stop().await;
}

#[tokio::test]
async fn an_answer_to_an_old_configuration_says_nothing_of_the_new_one() {
    let (app, receiver) = (start().await, Receiver::start().await);
    for status in [410, 429] {
        let gate = Gate::closed();
        receiver.take_calls();
        first_is_late(&receiver, &gate, status);
        app.export(&receiver, &json!({ "url": receiver.url("old/{id}") }))
            .await;
        app.push(&format!("A-{status}"), "1.00").await;
        calls(&receiver, 1).await;
        app.post("exports", &export(&receiver, &json!({})))
            .await
            .expect(200);
        app.push(&format!("B-{status}"), "1.00").await;
        let second = calls(&receiver, 2).await.remove(1);
        assert_eq!(second.target, format!("/orders/B-{status}"));
        gate.open();
        eventually("it was settled", || async {
            let open = app.deliveries().await;
            (open.is_empty() || open[0]["attempt"] == 1).then_some(())
        })
        .await;
        let now = app.get("exports/erp").await.expect(200).json();
        assert_eq!(
            (&now["status"], held_until(&app).await),
            (&json!("active"), None)
        );
        app.clock.advance(TimeDelta::seconds(10));
        let third = calls(&receiver, 3).await.remove(2);
        assert_eq!(third.target, format!("/orders/A-{status}"));
        app.delete("exports/erp").await.expect(204);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_can_not_be_noted_is_given_up_alone() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(20).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    sql(
        &app,
        "alter table export_log add check (external_id is distinct from 'A-00007')",
    )
    .await;
    assert_eq!(app.run_through().await, [19, 0, 1]);
    let dead = app.deliveries().await.remove(0);
    assert_eq!(
        (&dead["state"], &dead["error_code"], &dead["external_id"]),
        (&json!("dead"), &json!("not_settled"), &json!(null))
    );
    app.calls_have_come().await;
    let called: BTreeSet<String> = receiver
        .calls()
        .iter()
        .map(|call| call.external_id())
        .collect();
    assert_eq!((called.len(), receiver.calls().len()), (20, 20));
    app.stop().await;
}

#[tokio::test]
async fn a_call_that_is_settled_after_an_erasure_leaves_no_digest() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let gate = Gate::closed();
    first_is_late(&receiver, &gate, 200);
    app.export(&receiver, &json!({ "resources": ["customers"] }))
        .await;
    app.post("orders", &order("A", "1.00")).await.expect(201);
    calls(&receiver, 1).await;
    app.delete("customers/C-1").await.expect(204);
    // The erasure has reached the log, its event has not reached the delivery or has: both are
    // fine.
    gate.open();
    assert_eq!(
        calls(&receiver, 2).await[1].json()["type"],
        "customer.erased"
    );
    app.exported().await;
    assert_eq!(app.log().await.len(), 1, "that the person was erased");
    app.stop().await;
}
