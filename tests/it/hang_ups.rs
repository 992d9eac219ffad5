//! Clients that hang up in the middle of a write.
//!
//! Two guards stand here, and each is enough: the task of its own in `Service::run`, and
//! `Transaction`'s drop. Without both (the work awaited in the handler, sqlx's own transactions) the
//! dropped handler gives its connection back inside an open transaction, and all three tests end
//! with "1 connections stay in a transaction".

use std::time::Duration;

use keyfold::edge::Limits;

use crate::support::app::App;
use crate::support::database;
use crate::support::load::{Load, Target, nothing_stays_open, order};
use crate::support::proxy::{Fate, Proxy};
use crate::support::raw;
use crate::support::scale::rounds;

/// Hang-ups at a time: not more than connections, so that the writes are under way.
const AT_ONCE: usize = 3;

/// Hang-ups after which the server comes to rest and is looked at: a later write on a connection
/// that was left in a transaction would end that one too.
const BURST: usize = 3;

/// Few connections, so that one that was left in a bad state is met again; and a database that is
/// a little away, so that hang-ups meet every step of a write.
async fn app() -> App {
    let url = database::fresh().await;
    let proxy = Proxy::start_with(&url, Duration::from_millis(2), |_| Fate::Passes).await;
    App::start_on(
        proxy.url,
        |config| config.database_max_connections = 4,
        Limits::default(),
    )
    .await
}

/// Sends writes and hangs up at once or a little later.
async fn hang_up(target: &Target, rest: &'static str, body: fn(usize) -> String, times: usize) {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..AT_ONCE {
        let target = target.clone();
        callers.spawn(async move {
            for _ in (caller..times).step_by(AT_ONCE) {
                let body = body(rand::random_range(0..100_000));
                let connection = raw::send(&target, &raw::post(&target, rest, &body)).await;
                let wait_us = rand::random_range(0..=12_000);
                tokio::time::sleep(Duration::from_micros(wait_us)).await;
                drop(connection);
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("the service listens");
    }
}

/// Half of the hang-ups while others write, the other half with a look at the rest after each burst.
async fn hang_ups_harm_nobody(rest: &'static str, body: fn(usize) -> String) {
    let app = app().await;
    let target = Target::of(&app);
    let half = rounds(200).div_ceil(2);
    let load = Load::start(&target, 2);
    hang_up(&target, rest, body, half).await;
    load.proceed(10).await;
    let told = load.stop_and_check(&app.pool, app.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    for _ in 0..half.div_ceil(BURST) {
        hang_up(&target, rest, body, BURST).await;
        nothing_stays_open(&app.pool).await;
    }
    let load = Load::start(&target, 4);
    load.proceed(40).await;
    let told = load.stop_and_check(&app.pool, app.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_in_a_write_leaves_no_transaction_open_and_loses_nobodys_write() {
    hang_ups_harm_nobody("orders", |n| {
        order(&format!("cut-{n}"), n % 50, 1).to_string()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_in_a_bulk_write_harms_nobody_either() {
    hang_ups_harm_nobody("orders/bulk", many).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_in_a_dry_run_harms_nobody_either() {
    hang_ups_harm_nobody("orders/bulk?dry_run=true", many).await;
}

fn many(n: usize) -> String {
    let items: Vec<_> = (0..10)
        .map(|i| order(&format!("cut-{n}-{i}"), i, 1))
        .collect();
    serde_json::json!({ "items": items }).to_string()
}
