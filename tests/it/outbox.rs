//! The outbox's own rules, statement by statement: who has a row, and who may say what became of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use chrono::TimeDelta;
use futures_util::future::join_all;
use keyfold::edge::Limits;
use keyfold::outbox::{self, Handler, Hints, LEASE, Leased, Settlement, Work, Worker};
use keyfold::state::State;
use uuid::Uuid;

use crate::support::app::App;
use crate::support::meta::Gate;
use crate::support::scale::eventually;

const KIND: &str = "test";
/// Rows of a kind that a process works on for one store.
const HALF_OF_ROOM: usize = 1_024;

/// A service that leaves the outbox alone.
async fn idle() -> App {
    App::start_with(|config| config.works = false, Limits::default()).await
}

async fn append(app: &App, rows: usize) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..rows).map(|_| app.clock.new_id()).collect();
    let mut connection = app.state.pool.acquire().await.expect("a connection");
    outbox::append(&mut connection, app.store_id, KIND, &ids, app.clock.now())
        .await
        .expect("stored");
    ids
}

async fn lease(app: &App) -> Vec<Leased> {
    let (lease_id, now) = (app.clock.new_id(), app.clock.now());
    outbox::lease_due(&app.state.pool, app.store_id, KIND, 100, lease_id, now)
        .await
        .expect("asked")
}

async fn begin(app: &App, row: &Leased) -> Vec<Uuid> {
    let now = app.clock.now();
    outbox::begin(&app.pool, app.store_id, &[row.id], row.lease_id, now)
        .await
        .expect("asked")
}

async fn settle(app: &App, row: &Leased, settlement: Settlement) -> Vec<Uuid> {
    let mut connection = app.state.pool.acquire().await.expect("a connection");
    outbox::settle(
        &mut connection,
        app.store_id,
        row.lease_id,
        &[(row.id, settlement)],
    )
    .await
    .expect("asked")
}

fn again(app: &App) -> Settlement {
    Settlement::Again {
        due_at: app.clock.now(),
        code: None,
    }
}

#[tokio::test]
async fn a_row_is_leased_once_however_many_sweep() {
    let app = idle().await;
    let ids: HashSet<Uuid> = append(&app, 300).await.into_iter().collect();
    let sweeps = join_all((0..12).map(|_| lease(&app))).await;
    let leased: Vec<Uuid> = sweeps.iter().flatten().map(|row| row.id).collect();
    let unique: HashSet<Uuid> = leased.iter().copied().collect();
    assert_eq!(unique.len(), leased.len(), "leased twice");
    let mut all = unique;
    while all.len() < ids.len() {
        let more = lease(&app).await;
        assert!(
            !more.is_empty(),
            "{} rows are never leased",
            ids.len() - all.len()
        );
        for row in more {
            assert!(all.insert(row.id), "leased twice");
        }
    }
    assert_eq!(all, ids);
    app.stop().await;
}

#[tokio::test]
async fn a_lease_that_runs_out_is_given_to_somebody_else_who_hears_of_what_was_begun() {
    let app = idle().await;
    append(&app, 1).await;
    let first = lease(&app).await.remove(0);
    assert!(!first.begun);
    assert!(lease(&app).await.is_empty());
    app.clock.advance(LEASE + TimeDelta::seconds(1));
    let second = lease(&app).await.remove(0);
    assert!(!second.begun, "nothing was begun");
    // Who lost the lease can't begin any more; who has it can, once.
    assert!(begin(&app, &first).await.is_empty());
    assert_eq!(begin(&app, &second).await, vec![second.id]);
    assert!(begin(&app, &second).await.is_empty());
    app.clock.advance(LEASE + TimeDelta::seconds(1));
    let third = lease(&app).await.remove(0);
    assert!(third.begun);
    assert_eq!(third.attempt, 1);
    app.stop().await;
}

#[tokio::test]
async fn who_lost_the_lease_can_only_say_that_it_is_done() {
    let app = idle().await;
    append(&app, 1).await;
    let first = lease(&app).await.remove(0);
    begin(&app, &first).await;
    app.clock.advance(LEASE + TimeDelta::seconds(1));
    let second = lease(&app).await.remove(0);
    let dead = Settlement::Dead {
        code: "refused".to_owned(),
    };
    for late in [again(&app), dead] {
        assert!(settle(&app, &first, late).await.is_empty());
    }
    // Nothing of it counted: nobody else can lease the row, and it is still begun.
    assert!(lease(&app).await.is_empty());
    let unknown = Settlement::Unknown {
        code: "interrupted".to_owned(),
    };
    assert_eq!(settle(&app, &second, unknown).await, vec![second.id]);
    assert!(settle(&app, &first, again(&app)).await.is_empty());
    assert_eq!(app.count("outbox where state = 'unknown'").await, 1);
    assert_eq!(settle(&app, &first, Settlement::Done).await, vec![first.id]);
    assert_eq!(app.count("outbox").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn what_is_put_back_is_due_later_unless_it_was_begun() {
    let app = idle().await;
    append(&app, 2).await;
    let rows = lease(&app).await;
    begin(&app, &rows[0]).await;
    let later = app.clock.now() + TimeDelta::seconds(30);
    let put_back: Vec<_> = rows.iter().map(|row| (row.id, later)).collect();
    let lease_id = rows[0].lease_id;
    outbox::put_back(&app.pool, app.store_id, lease_id, &put_back, Some("paced"))
        .await
        .expect("asked");
    assert!(lease(&app).await.is_empty());
    app.clock.advance(TimeDelta::seconds(31));
    let found = lease(&app).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].id, found[0].parked), (rows[1].id, true));
    app.stop().await;
}

/// Two stores of one bucket.
fn neighbours() -> (i64, i64) {
    let first = 1_000_000;
    let mut others = first + 1..;
    let second = others.find(|id| outbox::bucket(*id) == outbox::bucket(first));
    (first, second.expect("every bucket has many"))
}

async fn append_due(app: &App, store_id: i64, rows: usize, ago: TimeDelta) {
    let ids: Vec<Uuid> = (0..rows).map(|_| app.clock.new_id()).collect();
    let due_at = app.clock.now() - ago;
    let mut connection = app.state.pool.acquire().await.expect("a connection");
    outbox::append(&mut connection, store_id, KIND, &ids, due_at)
        .await
        .expect("stored");
}

/// How many rows of each store were handed out.
type Seen = Arc<Mutex<HashMap<i64, usize>>>;

/// Work that goes on until the gate is opened.
fn lasting(seen: &Seen, gate: &Gate) -> Handler {
    let (seen, gate) = (Arc::clone(seen), gate.clone());
    Arc::new(move |_: State, work: Work| {
        let (seen, gate) = (Arc::clone(&seen), gate.clone());
        let rows = work.rows.len();
        *seen
            .lock()
            .expect("no panic")
            .entry(work.store_id)
            .or_default() += rows;
        Box::pin(async move {
            gate.pass().await;
            drop(work);
        })
    })
}

#[tokio::test]
async fn a_store_with_thousands_of_due_rows_does_not_starve_its_neighbour() {
    let app = idle().await;
    let (flood, neighbour) = neighbours();
    append_due(&app, flood, 10_000, TimeDelta::hours(1)).await;
    append_due(&app, neighbour, 1, TimeDelta::seconds(1)).await;
    let (seen, gate) = (Seen::default(), Gate::closed());
    let handlers = |_: &Hints| Ok::<_, sqlx::Error>(vec![(KIND, lasting(&seen, &gate))]);
    let (mut worker, _hints) = Worker::new(&app.state, handlers).expect("set up");
    let pulse = app.state.vitals.register("test");
    let works = tokio::spawn(async move { worker.run(&pulse).await });
    // None of the work of the flood ever ends, and it takes all that it can get.
    let of = |store_id| seen.lock().expect("no panic").get(&store_id).copied();
    eventually(
        "the neighbour has its turn, and the flood its share",
        || async {
            (of(neighbour) == Some(1) && of(flood) >= Some(HALF_OF_ROOM - 1)).then_some(())
        },
    )
    .await;
    assert!(of(flood) <= Some(HALF_OF_ROOM), "{:?}", of(flood));
    works.abort();
    gate.open();
    app.stop().await;
}
