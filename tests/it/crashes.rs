//! The power switch: `kill -9` of the server and of Postgres while clients write. What was
//! acknowledged is there afterwards, and everything heals by itself.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;

use crate::support::database::{self, OwnServer};
use crate::support::load::{Load, Target, nothing_stays_open, order, target};
use crate::support::process::Process;
use crate::support::scale::{eventually, rounds};

const WRITERS: usize = 8;

/// A database's own pool: for looking, not for writing.
fn pool(url: &str) -> PgPool {
    sqlx::postgres::PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy(url)
        .expect("an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_it_acknowledged() {
    let url = database::fresh().await;
    let looking = pool(&url);
    let mut server = Process::serve(&url);
    let target = target(&server.base, &looking).await;
    let address = server.base.trim_start_matches("http://").to_owned();
    let load = Load::start(&target, WRITERS);
    for _ in 0..rounds(3) {
        load.proceed(40).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..50))).await;
        server.kill();
        server = Process::serve_with(&url, &[("KEYFOLD_LISTEN", &address)]);
    }
    load.proceed(40).await;
    let told = load.stop_and_check(&looking, target.store_id).await;
    println!("killed server: {told:?}");
    assert!(told.refusals.is_empty(), "{told:?}");
    nothing_stays_open(&looking).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_loses_nothing_acknowledged_and_the_server_heals_by_itself() {
    let postgres = OwnServer::start("killed").await;
    let looking = pool(&postgres.url);
    let server = Process::serve(&postgres.url);
    let target = target(&server.base, &looking).await;
    let load = Load::start(&target, WRITERS);
    for _ in 0..rounds(3) {
        load.proceed(40).await;
        let pid = eventually("Postgres is up", || async { postgres.pid() }).await;
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        eventually("its keeper sees it", || async {
            (postgres.pid() != Some(pid)).then_some(())
        })
        .await;
    }
    load.proceed(40).await;
    let told = load.stop_and_check(&looking, target.store_id).await;
    println!("killed Postgres: {told:?}");
    for (status, code, retry_after) in told.refusals.keys() {
        let known = ["database_unavailable", "outcome_unknown", "overloaded"];
        let fits = *status == 503 && *retry_after && known.contains(&code.as_str());
        assert!(fits, "{told:?}");
    }
    nothing_stays_open(&looking).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_away_writes_are_503_and_afterwards_they_are_taken_again() {
    let mut postgres = OwnServer::start("away").await;
    let server = Process::serve(&postgres.url);
    let target = target(&server.base, &pool(&postgres.url)).await;
    target
        .push("orders", &order("before", 1, 1))
        .await
        .expect(201);

    postgres.stop();
    let refused = target
        .push("orders", &order("during", 1, 1))
        .await
        .expect(503);
    assert_eq!(refused.code(), "database_unavailable");
    assert_eq!(refused.header("retry-after"), "2");
    assert_eq!(
        readiness(&target).await,
        (503, "database_unavailable".to_owned())
    );
    let id = refused.header("x-request-id");
    eventually("the failure is logged under its id", || async {
        let is_it = |line: &String| line.contains("request failed") && line.contains(id);
        server.log().iter().any(is_it).then_some(())
    })
    .await;

    postgres.start_again();
    eventually("writes are taken again", || async {
        let answer = target.push("orders", &order("during", 1, 1)).await;
        (answer.status == 201).then_some(())
    })
    .await;
    // Followers and the worker ask again within a second or so.
    eventually("it is ready", || async {
        (readiness(&target).await == (200, "ready".to_owned())).then_some(())
    })
    .await;
    let repeated = target
        .push("orders", &order("before", 1, 1))
        .await
        .expect(200);
    assert_eq!(repeated.outcome(), "unchanged");
}

async fn readiness(target: &Target) -> (u16, String) {
    let asked = target.client.get(format!("{}/readyz", target.base)).send();
    let answer = crate::support::app::answer(asked.await.expect("it answers")).await;
    let word = answer.json()["status"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status.as_u16(), word)
}
