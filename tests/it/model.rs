//! Random writes by many clients at once, and a model that does one thing after the other: every
//! answer has to be the one that the model gives in some order of the writes, and that order has to
//! agree with the clocks of the clients.
//!
//! ```text
//!  plan ── 32 clients ──▶ 1 or 2 servers ──▶ answers, with times
//!                                              │ record by record
//!     order    which change made which version, each version once
//!     rules    the model over that order: outcomes, bodies
//!     timing   nobody meets an older version than was told before it asked
//!     people   customers, whom orders change as well
//!     feed     one event for each version
//! ```
//!
//! A round writes few records of a store of its own; it is checked and forgotten before others
//! begin. `KEYFOLD_TEST_SEED` repeats the plans of a run, not what the scheduler made of them.

mod bodies;
mod bulk;
mod check;
mod client;
mod evidence;
mod feed;
mod history;
mod notes;
mod order;
mod people;
mod plan;
mod rules;
mod shares;
mod timing;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use futures_util::future::join_all;

use self::check::Wrong;
use self::client::{Client, Round, Shop};
use self::history::Op;
use crate::support::app::{self, App};
use crate::support::process::Process;
use crate::support::scale::{number, rounds};

const CLIENTS: usize = 32;

/// Writes of a round; each item of a bulk request is one. `KEYFOLD_TEST_ROUNDS=500` makes a million
/// of both tests.
const WRITES: usize = 1_000;

/// Some commits take as long as on a disk. The Postgres of the tests syncs nothing, so that an answer
/// before its commit would hardly ever be found out.
const SLOW_COMMITS: &str = "
    create function slow_commit() returns trigger language plpgsql as $$
    begin
        perform pg_sleep(0.004);
        return null;
    end
    $$;
    create constraint trigger slow_commit after insert on events
        deferrable initially deferred
        for each row when (new.version % 8 = 1)
        execute function slow_commit();
";

/// Rounds at the same time, each in a store of its own, by turns: one store that all clients crowd
/// into, and stores whose writes must not get mixed up.
const STORES: [usize; 2] = [1, 3];

#[tokio::test]
async fn answers_of_one_process_are_those_of_writes_one_after_another() {
    run(1, rounds(25)).await;
}

#[tokio::test]
async fn answers_of_two_processes_are_those_of_writes_one_after_another() {
    run(2, rounds(25)).await;
}

/// So many rounds against so many servers on one database.
async fn run(servers: usize, rounds: usize) {
    let app = App::start().await;
    let servers: Vec<Process> = (0..servers)
        .map(|_| Process::serve(&app.database_url))
        .collect();
    sqlx::raw_sql(SLOW_COMMITS)
        .execute(&app.pool)
        .await
        .expect("the statements run");
    let clients: Vec<Client> = (0..CLIENTS).map(Client::new).collect();
    let seed = number("KEYFOLD_TEST_SEED");
    let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000_000));
    let (began, mut tally) = (Instant::now(), BTreeMap::new());
    let (mut played, mut stores) = (0, STORES.into_iter().cycle());
    while played < rounds {
        let count = stores.next().expect("no end").min(rounds - played);
        for op in play(&app, &servers, &clients, (seed, played), count).await {
            *tally.entry(op.label()).or_insert(0_usize) += 1;
        }
        played += count;
    }
    let (writes, count, took) = (rounds * WRITES, servers.len(), began.elapsed());
    // Not `println`, which nobody sees of a test that passes.
    writeln!(
        std::io::stderr().lock(),
        "model: {writes} writes by {CLIENTS} clients through {count} servers in {took:.1?}, \
         seed {seed}: {tally:?}"
    )
    .expect("stderr is there");
    app.stop().await;
}

/// So many rounds at once, from this one on; gives all that was asked.
async fn play(
    app: &App,
    servers: &[Process],
    clients: &[Client],
    (seed, first): (usize, usize),
    count: usize,
) -> Vec<Op> {
    let mut shops = Vec::new();
    for _ in 0..count {
        shops.push(shop(app, servers).await);
    }
    let rounds = shops.iter().enumerate().map(|(at, shop)| {
        // Neighbours ask different servers, so they are dealt out in pairs.
        let mine = clients
            .iter()
            .filter(move |client| client.at / 2 % count == at);
        play_one(shop, mine.collect(), (seed, first + at))
    });
    join_all(rounds).await.into_iter().flatten().collect()
}

/// A new store behind the servers.
async fn shop(app: &App, servers: &[Process]) -> Shop {
    let (_, store_id, key) = app::tenant(&app.pool, &app.clock, "Model").await;
    Shop {
        servers: servers.iter().map(|server| server.base.clone()).collect(),
        store_id,
        key,
    }
}

/// One round; fails the test when its answers are not those of the model.
async fn play_one(shop: &Shop, clients: Vec<&Client>, (seed, at): (usize, usize)) -> Vec<Op> {
    let round = Round::new(shop, plan::plan(seed, at, WRITES));
    join_all(clients.iter().map(|client| round.work(client))).await;
    let looker = clients[0];
    round.look_at_all(looker).await;
    let events = round.events(looker).await;
    let people = round.customers(looker).await;
    let history = round.into_history();
    let compared = check::check(&history, shop.store_id).and_then(|cases| {
        let known = cases.iter().filter(|case| case.is_person()).count();
        assert_eq!(people, known, "one record for each customer");
        feed::check(&cases, &events)
    });
    if let Err(wrong) = compared {
        panic!("seed {seed}, round {at}: {}", report(&wrong, &history));
    }
    history
}

/// What is wrong, and all that was asked of that record.
fn report(Wrong { target, problem }: &Wrong, history: &[Op]) -> String {
    let mut report = format!("{}: {problem}\n\nall of it:\n", bodies::name(*target));
    for op in history.iter().filter(|op| op.target == *target) {
        writeln!(report, "{op}").expect("a string takes everything");
    }
    report
}
