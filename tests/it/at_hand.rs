//! Connections that go from one batch to the next.

use std::time::Duration;

use keyfold::engine::at_hand::{AtHand, Held};
use keyfold::state::TRUSTED_IDLE;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::support::database;

const WELL_IN_TIME: Duration = Duration::from_secs(10);

/// The process of Postgres behind a connection.
async fn process(held: &mut Held) -> i32 {
    let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *held.connection);
    pid.await.expect("an answer")
}

async fn pool(most: u32) -> PgPool {
    let url = database::fresh().await;
    let options = PgPoolOptions::new().max_connections(most);
    options.connect_lazy(&url).expect("an address")
}

#[tokio::test]
async fn the_connection_that_was_used_last_is_used_next() {
    let at_hand = AtHand::new(pool(2).await);
    let (mut first, mut second) = (
        at_hand.take().await.expect("one"),
        at_hand.take().await.expect("another one"),
    );
    let pids = [process(&mut first).await, process(&mut second).await];
    assert_ne!(pids[0], pids[1]);
    at_hand.keep(second);
    at_hand.keep(first);
    for expected in [pids[0], pids[0]] {
        let mut next = at_hand.take().await.expect("the last one");
        assert_eq!(process(&mut next).await, expected);
        at_hand.keep(next);
    }
    let mut last = at_hand.take().await.expect("the last one");
    let mut before = at_hand.take().await.expect("the one before");
    assert_eq!([process(&mut last).await, process(&mut before).await], pids);
}

#[tokio::test]
async fn what_rested_for_long_goes_back_to_the_pool() {
    let pool = pool(2).await;
    let at_hand = AtHand::new(pool.clone());
    let (first, second) = (
        at_hand.take().await.expect("one"),
        at_hand.take().await.expect("another one"),
    );
    at_hand.keep(first);
    at_hand.keep(second);
    assert_eq!(pool.num_idle(), 0);
    tokio::time::sleep(TRUSTED_IDLE).await;
    let _one = at_hand.take().await.expect("one of the pool");
    let other = tokio::time::timeout(WELL_IN_TIME, pool.acquire()).await;
    other.expect("no other one is at hand").expect("it is well");
}

#[tokio::test]
async fn the_only_connection_that_rested_for_long_is_not_waited_for() {
    let at_hand = AtHand::new(pool(1).await);
    at_hand.keep(at_hand.take().await.expect("one"));
    tokio::time::sleep(TRUSTED_IDLE).await;
    let again = tokio::time::timeout(WELL_IN_TIME, at_hand.take()).await;
    again.expect("it went back first").expect("it is well");
}

#[tokio::test]
async fn a_pool_can_be_closed_when_nothing_is_at_hand() {
    let pool = pool(1).await;
    let at_hand = AtHand::new(pool.clone());
    at_hand.keep(at_hand.take().await.expect("one"));
    at_hand.give_back();
    let closed = tokio::time::timeout(WELL_IN_TIME, pool.close()).await;
    closed.expect("nobody holds a connection");
}
