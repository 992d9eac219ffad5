//! Requests that wait for another one with their key: rule 6.

use std::time::Duration;

use futures_util::future::join_all;
use keyfold::edge::Limits;
use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::support::app::App;
use crate::support::load::order;
use crate::support::load::somebody_waits;
use crate::support::messaging::{HoldUp, PHONE, SEND, SLOW, TEMPLATES, template_to, text_to};
use crate::support::scale::eventually;

/// Requests with the slow key.
const WAITING: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_hold_no_connection_and_everybody_else_is_served() {
    // Four for the lanes of writes, four for all the rest.
    let few = |config: &mut keyfold::config::Config| config.database_max_connections = 8;
    let app = App::start_with(few, Limits::default()).await;
    app.hear_from(PHONE, "Hello").await;
    let template = app.template("hello", "Hello").await;
    let hold_up = HoldUp::start(&app).await;
    let body = text_to(PHONE, SLOW).to_string();
    let (app_ref, body_ref) = (&app, body.as_str());
    let waiting =
        join_all((0..WAITING).map(|_| async move { app_ref.keyed(SEND, "k", body_ref).await }));
    let others = async {
        hold_up.holds_one().await;
        for n in 0..20 {
            let phone = format!("+3361000{n:04}");
            let free = template_to(&phone, template, &json!({})).to_string();
            app.keyed(TEMPLATES, &format!("free-{n}"), free)
                .await
                .expect(201);
            app.post("orders", &order(&format!("O-{n}"), n, 1))
                .await
                .expect(201);
            let list = format!("/api/v1/messages?store_id={}", app.store_id);
            app.read(&list).await.expect(200);
        }
        // One of all who wait stands in its transaction, and nobody waits for its lock.
        let (working, blocked): (i64, i64) = sqlx::query_as(
            "select count(*) filter (where query like 'insert into messages%'),
                count(*) filter (where query like '%idempotency_keys%')
            from pg_stat_activity
            where datname = current_database() and state = 'active' and pid <> pg_backend_pid()",
        )
        .fetch_one(&app.pool)
        .await
        .expect("pg_stat_activity");
        assert_eq!((working, blocked), (1, 0));
        hold_up.end().await;
    };
    let (answers, ()) = tokio::join!(waiting, others);
    // On a machine so slow that this took 5 s, some have given up; nobody else was refused.
    let (sent, gave_up): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    assert!(!sent.is_empty(), "at least the first one");
    assert!(sent.iter().all(|answer| answer.text == sent[0].text));
    for answer in gave_up {
        assert_eq!(answer.expect(409).code(), "idempotency_key_in_use");
    }
    let slow: i64 =
        sqlx::query_scalar("select count(*) from messages where content ->> 'body' = 'slow'")
            .fetch_one(&app.pool)
            .await
            .expect("messages");
    assert_eq!(slow, 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_waited_in_vain_is_told_that_the_key_is_in_use_and_when_to_come_again() {
    let app = App::start().await;
    let other = app.another().await;
    app.hear_from(PHONE, "Hello").await;
    let hold_up = HoldUp::start(&app).await;
    let body = text_to(PHONE, SLOW).to_string();
    let first = app.keyed(SEND, "k", body.as_str());
    let in_vain = async {
        hold_up.holds_one().await;
        // In the process of the first one, and in another one.
        let waiting = [&app, &other].map(|service| async {
            let started = tokio::time::Instant::now();
            let answer = service.keyed(SEND, "k", body.as_str()).await;
            (answer, started.elapsed())
        });
        for (answer, waited) in join_all(waiting).await {
            let answer = answer.expect(409);
            assert_eq!(answer.code(), "idempotency_key_in_use");
            assert_eq!(answer.header("retry-after"), "1");
            assert_eq!(answer.headers.get("idempotent-replayed"), None);
            assert!(waited >= Duration::from_secs(5), "{waited:?}");
        }
        hold_up.end().await;
    };
    let (first, ()) = tokio::join!(first, in_vain);
    let first = first.expect(201);
    for service in [&other, &app] {
        let again = service.keyed(SEND, "k", body.as_str()).await.expect(201);
        assert_eq!(again.text, first.text);
        assert_eq!(again.header("idempotent-replayed"), "true");
    }
    assert_eq!(app.count("messages").await, 1);
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_another_process_holds_no_lock_between_its_attempts() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    // Somebody has the key and never lets go, say a process that hangs.
    let mut hanging = PgConnection::connect_with(&app.pool.connect_options())
        .await
        .expect("a connection");
    hanging.execute("begin").await.expect("a transaction");
    sqlx::query(
        "insert into idempotency_keys (store_id, id, endpoint, key, body_sha256, first_seen_at)
        values ($1, gen_random_uuid(), 'send', 'k', '', now())",
    )
    .bind(app.store_id)
    .execute(&mut hanging)
    .await
    .expect("a row");
    let body = text_to(PHONE, "Hello").to_string();
    let sending = app.keyed(SEND, "k", body.as_str());
    let looking = async {
        // It waits for the lock for a moment and lets its connection go, by turns.
        for waits in [true, false, true, false, true] {
            eventually("the claim is tried and left alone by turns", || async {
                let waiting: bool = sqlx::query_scalar(
                    "select exists (
                        select from pg_stat_activity
                        where datname = current_database() and wait_event_type = 'Lock'
                    )",
                )
                .fetch_one(&app.pool)
                .await
                .expect("pg_stat_activity");
                (waiting == waits).then_some(())
            })
            .await;
        }
        hanging.execute("rollback").await.expect("the key is free");
    };
    let (answer, ()) = tokio::join!(sending, looking);
    let answer = answer.expect(201);
    assert_eq!(answer.headers.get("idempotent-replayed"), None);
    assert_eq!(app.count("messages").await, 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_whose_contact_is_held_for_long_waits_or_leaves_its_key_free() {
    let app = App::start().await;
    let other = app.another().await;
    app.hear_from(PHONE, "Hello").await;
    let mut holder = PgConnection::connect_with(&app.pool.connect_options())
        .await
        .expect("a connection");
    holder.execute("begin").await.expect("a transaction");
    holder
        .execute("select from contacts for update")
        .await
        .expect("the contact is held");
    let body = text_to(PHONE, "Hello").to_string();
    let path = format!("/api/v1/idempotency-keys/send/k?store_id={}", app.store_id);
    let sending = app.keyed(SEND, "k", body.as_str());
    let held = async {
        eventually("the send waits for the contact", || async {
            somebody_waits(&app.pool).await.then_some(())
        })
        .await;
        // In its process the key counts as in use the whole time.
        let refused = app.remove(&path).await.expect(409);
        assert_eq!(refused.code(), "idempotency_key_in_use");
        tokio::time::sleep(Duration::from_secs(3)).await;
        holder.execute("rollback").await.expect("it is let go");
    };
    let (answer, ()) = tokio::join!(sending, held);
    if answer.status == 503 {
        assert_eq!(answer.code(), "overloaded", "nothing was done");
        assert_eq!(app.count("messages").await, 0);
        assert_eq!(app.count("idempotency_keys").await, 0);
    } else {
        answer.expect(201);
    }
    other.keyed(SEND, "k", body).await.expect(201);
    assert_eq!(app.count("messages").await, 1);
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_and_hang_up_take_nobodys_turn_away() {
    let app = App::start().await;
    app.hear_from(PHONE, "Hello").await;
    let hold_up = HoldUp::start(&app).await;
    let body = text_to(PHONE, SLOW).to_string();
    let first = app.keyed(SEND, "k", body.as_str());
    let others = async {
        hold_up.holds_one().await;
        for _ in 0..10 {
            let waiting = app.keyed(SEND, "k", body.as_str());
            let gave_up = tokio::time::timeout(Duration::from_millis(20), waiting).await;
            assert!(gave_up.is_err(), "the first one is still held up");
        }
        let last = app.keyed(SEND, "k", body.as_str());
        let (last, ()) = tokio::join!(last, hold_up.end());
        last
    };
    let (first, last) = tokio::join!(first, others);
    let first = first.expect(201);
    assert_eq!(last.expect(201).text, first.text);
    assert_eq!(app.count("messages").await, 1);
    // Nothing of them is left: the key can be forgotten at once.
    let path = format!("/api/v1/idempotency-keys/send/k?store_id={}", app.store_id);
    eventually("the key is no longer in use", || async {
        let answer = app.remove(&path).await;
        (answer.status == 204).then_some(())
    })
    .await;
    app.stop().await;
}
