//! Clients that hang up in the middle of a write.
//!
//! Without the guards (the task of its own in `Service::run`, and `Transaction`'s drop) these go
//! red: the dropped handler gives a connection back to the pool inside an open transaction.

use std::time::Duration;

use keyfold::edge::Limits;

use crate::support::app::App;
use crate::support::load::{Load, Target, check_events, nothing_stays_open, order};
use crate::support::raw;
use crate::support::scale::rounds;

/// Hang-ups at a time.
const AT_ONCE: usize = 8;

/// Four connections: a poisoned one is met again at once.
async fn app_with_few_connections() -> App {
    App::start_with(
        |config| config.database_max_connections = 4,
        Limits::default(),
    )
    .await
}

/// Sends writes and hangs up at once or after up to 3 ms, while others write.
async fn hang_up_often(target: &Target, rest: &'static str, body: fn(usize) -> String) {
    let all = rounds(200);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..AT_ONCE {
        let target = target.clone();
        callers.spawn(async move {
            for n in (caller..all).step_by(AT_ONCE) {
                let connection = raw::send(&target, &raw::post(&target, rest, &body(n))).await;
                let wait_us = rand::random_range(0..=3_000);
                tokio::time::sleep(Duration::from_micros(wait_us)).await;
                drop(connection);
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("the service listens");
    }
}

/// What is acknowledged now has to be there for everybody else.
async fn later_writes_are_there(app: &App) {
    let target = Target::of(app);
    for n in 0..64 {
        let key = format!("later-{n}");
        target
            .push("orders", &order(&key, n % 5, 1))
            .await
            .expect(201);
        let seen: bool = sqlx::query_scalar(
            "select exists (select from orders where store_id = $1 and external_id = $2)",
        )
        .bind(app.store_id)
        .bind(&key)
        .fetch_one(&app.pool)
        .await
        .expect("orders");
        assert!(seen, "{key} was acknowledged and is not there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_in_a_write_leaves_no_transaction_open_and_loses_no_later_write() {
    let app = app_with_few_connections().await;
    let target = Target::of(&app);
    let load = Load::start(&target, 4);
    hang_up_often(&target, "orders", |n| {
        order(&format!("cut-{n}"), n % 50, 1).to_string()
    })
    .await;
    load.proceed(20).await;
    let told = load.stop_and_check(&app.pool, app.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    nothing_stays_open(&app.pool).await;
    later_writes_are_there(&app).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_in_a_bulk_or_a_dry_run_leaves_no_transaction_open_either() {
    let app = app_with_few_connections().await;
    let target = Target::of(&app);
    let load = Load::start(&target, 2);
    let many = |n| {
        let items: Vec<_> = (0..20)
            .map(|i| order(&format!("b-{n}-{i}"), i, 1))
            .collect();
        serde_json::json!({ "items": items }).to_string()
    };
    hang_up_often(&target, "orders/bulk", many).await;
    hang_up_often(&target, "orders/bulk?dry_run=true", many).await;
    load.proceed(20).await;
    let told = load.stop_and_check(&app.pool, app.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    nothing_stays_open(&app.pool).await;
    later_writes_are_there(&app).await;
    check_events(&app.pool, app.store_id).await;
    app.stop().await;
}
