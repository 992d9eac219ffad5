//! Rows that somebody else holds, for as long as they like, hold up the writes of these rows alone:
//! no lane, no other key and no other store waits with them.

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use keyfold::edge::Limits;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, Postgres};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

use crate::support::app::{Answer, App};
use crate::support::database;
use crate::support::load::{Target, check_events, nothing_stays_open, order, somebody_waits};
use crate::support::process::Process;
use crate::support::proxy::{Fate, Proxy};
use crate::support::scale::eventually;

/// More than there are lanes.
const HELD: usize = 3;
/// Writes of others meanwhile.
const OTHERS: usize = 40;

/// Nobody is refused for waiting, however slow the machine is.
fn patient() -> Limits {
    Limits {
        queue_timeout: Duration::from_secs(300),
        ..Limits::default()
    }
}

type Holder = sqlx::Transaction<'static, Postgres>;

/// Does something in a transaction that stays open.
async fn hold(pool: &PgPool, statement: &str) -> Holder {
    let mut holder = pool.begin().await.expect("a transaction");
    let done = sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&mut *holder)
        .await
        .expect("a lock");
    assert!(done.rows_affected() > 0, "{statement}");
    holder
}

async fn wait_for_a_wait(pool: &PgPool) {
    eventually("somebody waits for a lock", || async {
        somebody_waits(pool).await.then_some(())
    })
    .await;
}

fn push(target: &Target, path: &str, body: Value) -> JoinHandle<Answer> {
    let (target, path) = (target.clone(), path.to_owned());
    tokio::spawn(async move { target.push(&path, &body).await })
}

/// Single writes of all kinds that `target` makes, a document and an atomic one: all go well.
async fn others_go_on(target: &Target, names: &str) {
    let writes = (0..OTHERS).map(|n| {
        let body = order(&format!("{names}-{n}"), 5_000 + n, 1);
        async move { target.push("orders", &body).await.expect(201) }
    });
    let written = stream::iter(writes).buffer_unordered(8).count().await;
    assert_eq!(written, OTHERS);
    for (path, first) in [("orders/bulk", 6_000), ("orders/bulk?atomic=true", 7_000)] {
        let item = |n: usize| order(&format!("{names}-{}", first + n), first + n, 1);
        let items: Vec<Value> = (0..20).map(item).collect();
        let answer = target.push(path, &json!({ "items": items })).await;
        assert_eq!(answer.expect(200).json()["summary"]["created"], 20);
    }
}

/// An order whose customer has this name.
fn named(at: usize, n: u64, first_name: &str) -> Value {
    let mut body = order(&format!("held-{at}"), at, n);
    body["customer"]["first_name"] = json!(first_name);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_holds_holds_up_its_own_writes_alone() {
    let rows = "select from orders where external_id like 'held-%' for update";
    let customers = "select from customers for update";
    let phones = "insert into customer_phones (store_id, phone)
        select store_id, '+3361234000' || n from customers, generate_series(0, 2) n";
    let keys = r#"insert into orders
        select (jsonb_populate_record(o, jsonb_build_object(
            'external_id', 'held-' || n, 'id', gen_random_uuid()))).*
        from orders o, generate_series(0, 2) n"#;
    // What is held, and whether the orders are there before.
    let cases = [
        (rows, true),
        (customers, true),
        (phones, false),
        (keys, false),
    ];
    for (statement, are_there) in cases {
        let app = App::start_with(|_| {}, patient()).await;
        let (target, neighbour) = (Target::of(&app), Target::neighbour(&app).await);
        if are_there {
            for at in 0..HELD {
                app.post("orders", &named(at, 1, "Ada")).await.expect(201);
            }
        } else {
            let model = order("model", 9_000, 1);
            app.post("orders", &model).await.expect(201);
        }
        let holder = hold(&app.pool, statement).await;
        let mut held = Vec::new();
        for at in 0..HELD {
            held.push(push(&target, "orders", named(at, 2, "Grace")));
        }
        wait_for_a_wait(&app.pool).await;
        others_go_on(&neighbour, "o").await;
        others_go_on(&target, "own").await;
        // Behind those, of the same keys.
        for at in 0..HELD {
            held.push(push(&target, "orders", named(at, 3, "Joan")));
        }
        others_go_on(&target, "more").await;
        let answered = held.iter().filter(|answer| answer.is_finished()).count();
        assert_eq!(answered, 0, "{statement}");

        holder.rollback().await.expect("no more lock");
        let first = if are_there { 2 } else { 1 };
        for (at, answer) in join_all(held).await.into_iter().enumerate() {
            let (round, at) = (at / HELD, at % HELD);
            let answer = answer.expect("no panic");
            let body = answer.json();
            assert_eq!(body["external_id"], format!("held-{at}"), "{body}");
            assert_eq!(body["version"], first + round, "{statement}: {body}");
            assert_eq!(body["metadata"]["n"], 2 + round, "{body}");
            let name = ["Grace", "Joan"][round];
            assert_eq!(body["customer"]["first_name"], name, "{body}");
        }
        check_events(&app.pool, app.store_id).await;
        check_events(&app.pool, neighbour.store_id).await;
        nothing_stays_open(&app.pool).await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_up_too_long_is_refused_and_not_written() {
    let limits = Limits {
        queue_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let app = App::start_with(|_| {}, limits).await;
    app.post("orders", &named(0, 1, "Ada")).await.expect(201);
    let holder = hold(&app.pool, "select from orders for update").await;

    let items = [named(0, 2, "Ada"), order("free", 1, 1)];
    let all = [named(0, 3, "Ada"), order("whole", 2, 1)];
    let single = app.post("orders", &named(0, 4, "Ada")).await.expect(503);
    assert_eq!(single.code(), "overloaded");
    assert_eq!(single.header("retry-after"), "1");
    let document = app.post("orders/bulk", &json!({ "items": items })).await;
    let results = document.expect(200).json()["results"].clone();
    assert_eq!(results[0]["code"], "overloaded", "{results}");
    assert_eq!(results[0]["status"], 503);
    assert_eq!(results[1]["outcome"], "created");
    let whole = app
        .post("orders/bulk?atomic=true", &json!({ "items": all }))
        .await
        .expect(503);
    assert_eq!(whole.code(), "overloaded");

    holder.rollback().await.expect("no more lock");
    app.get("orders/whole").await.expect(404);
    let stored = app.get("orders/held-0").await.expect(200).json();
    assert_eq!(
        (&stored["version"], &stored["metadata"]["n"]),
        (&json!(1), &json!(1))
    );
    let later = app.post("orders", &named(0, 5, "Ada")).await.expect(200);
    assert_eq!(later.json()["version"], 2);
    check_events(&app.pool, app.store_id).await;
    nothing_stays_open(&app.pool).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_up_takes_places_of_its_own_store_alone() {
    const PLACES: u8 = 8;
    let app = App::start_with(|config| config.write_queue = PLACES.into(), patient()).await;
    let (target, neighbour) = (Target::of(&app), Target::neighbour(&app).await);
    for at in 0..usize::from(PLACES) {
        app.post("orders", &named(at, 1, "Ada")).await.expect(201);
    }
    let holder = hold(&app.pool, "select from orders for update").await;
    let held: Vec<_> = (0..usize::from(PLACES))
        .map(|at| push(&target, "orders", named(at, 2, "Ada")))
        .collect();
    let free = order("free", 1_000, 1);
    eventually("all places of the store are taken", || async {
        let answer = app.post("orders", &free).await;
        (answer.status == 503).then(|| assert_eq!(answer.code(), "overloaded"))
    })
    .await;
    for n in 0..20 {
        let body = order(&format!("o-{n}"), 5_000 + n, 1);
        neighbour.push("orders", &body).await.expect(201);
    }
    assert!(!held.iter().any(JoinHandle::is_finished));
    holder.rollback().await.expect("no more lock");
    for answer in join_all(held).await {
        answer.expect("no panic").expect(200);
    }
    app.post("orders", &free).await.expect(200);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_with_a_held_row_stores_the_others_and_waits_for_that_one() {
    let app = App::start_with(|_| {}, patient()).await;
    let target = Target::of(&app);
    app.post("orders", &named(0, 1, "Ada")).await.expect(201);
    let holder = hold(&app.pool, "select from orders for update").await;
    let mut items: Vec<Value> = (0..100)
        .map(|n| order(&format!("item-{n}"), 100 + n, 1))
        .collect();
    items.insert(50, named(0, 2, "Ada"));
    let all = [order("whole", 300, 1), named(0, 3, "Ada")];
    let document = push(&target, "orders/bulk", json!({ "items": items }));
    eventually("the others are stored", || async {
        (app.count("orders").await == 101).then_some(())
    })
    .await;
    let whole = push(&target, "orders/bulk?atomic=true", json!({ "items": all }));
    others_go_on(&target, "o").await;
    assert!(!document.is_finished() && !whole.is_finished());
    app.get("orders/whole").await.expect(404);
    holder.rollback().await.expect("no more lock");
    let summary = document.await.expect("no panic").expect(200).json()["summary"].clone();
    assert_eq!(
        (&summary["created"], &summary["updated"]),
        (&json!(100), &json!(1))
    );
    let summary = whole.await.expect("no panic").expect(200).json()["summary"].clone();
    assert_eq!(
        (&summary["created"], &summary["updated"]),
        (&json!(1), &json!(1))
    );
    check_events(&app.pool, app.store_id).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_that_holds_rows_stops_nobody_else() {
    let app = App::start_with(|_| {}, patient()).await;
    let target = Target::of(&app);
    for at in 0..=HELD {
        app.post("orders", &named(at, 1, "Ada")).await.expect(201);
    }
    // The dry run waits for the last row, and holds those before it. It ends by itself after 5 s,
    // which a slow machine may need for the others.
    let last = format!("select from orders where external_id = 'held-{HELD}' for update");
    let mut n = 2;
    eventually("others go on while it holds rows", || {
        n += 1;
        let (app, target, last) = (&app, &target, &last);
        async move {
            let holder = hold(&app.pool, last).await;
            let items: Vec<Value> = (0..=HELD).map(|at| named(at, 2, "Ada")).collect();
            let path = "orders/bulk?dry_run=true";
            let rehearsal = push(target, path, json!({ "items": items }));
            wait_for_a_wait(&app.pool).await;
            let held: Vec<_> = (0..HELD)
                .map(|at| push(target, "orders", named(at, n, "Ada")))
                .collect();
            others_go_on(target, &format!("o-{n}")).await;
            let went_on = !rehearsal.is_finished();
            if went_on {
                let answered = held.iter().filter(|answer| answer.is_finished()).count();
                assert_eq!(answered, 0);
            }
            holder.rollback().await.expect("no more lock");
            let ended = rehearsal.await.expect("no panic").status.as_u16();
            assert!([200, 503].contains(&ended), "{ended}");
            for answer in join_all(held).await {
                let body = answer.expect("no panic").expect(200).json();
                assert_eq!(body["metadata"]["n"], n);
            }
            went_on.then_some(())
        }
    })
    .await;
    check_events(&app.pool, app.store_id).await;
    nothing_stays_open(&app.pool).await;
    app.stop().await;
}

/// Holds a process's inserts of takers back inside the database for as long as the gate has a row.
const GATE: &str = "
    create table gate (closed boolean);
    insert into gate values (true);
    create function wait_at_gate() returns trigger language plpgsql as $$
    begin
        while exists (select from gate) loop
            perform pg_sleep(0.01);
        end loop;
        return new;
    end $$;
    create trigger gate before insert on orders for each row
    when (new.external_id like 'held-%') execute function wait_at_gate();";

/// How many wait at the gate.
async fn at_gate(pool: &PgPool) -> usize {
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event = 'PgSleep'";
    let waiting: i64 = sqlx::query_scalar(waiting)
        .fetch_one(pool)
        .await
        .expect("pg_stat_activity");
    usize::try_from(waiting).expect("a count")
}

async fn run(pool: &PgPool, statement: &'static str) {
    let done = sqlx::raw_sql(statement).execute(pool).await;
    done.expect(statement);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_with_locks_stops_no_other_process() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let (stopped, healthy) = (Process::serve(&url), Process::serve(&url));
    let target = crate::support::load::target(&healthy.base, &pool).await;
    let there = Target {
        base: stopped.base.clone(),
        client: crate::support::app::client(),
        ..target.clone()
    };
    run(&pool, GATE).await;
    let theirs: Vec<_> = (0..2)
        .map(|at| {
            let (there, body) = (there.clone(), named(at, 1, "Ada"));
            tokio::spawn(async move { there.post("orders", &body).await })
        })
        .collect();
    eventually("they are in the middle of a transaction", || async {
        (at_gate(&pool).await > 0).then_some(())
    })
    .await;
    let pid = Pid::from_raw(stopped.pid().cast_signed());
    kill(pid, Signal::SIGSTOP).expect("it runs");
    run(&pool, "delete from gate").await;
    eventually("nobody asks for their commit", || async {
        let open = "select count(*) from pg_stat_activity
            where datname = current_database() and state = 'idle in transaction'";
        let open: i64 = sqlx::query_scalar(open).fetch_one(&pool).await.expect("it");
        (open > 0).then_some(())
    })
    .await;

    let held: Vec<_> = (0..2)
        .map(|at| {
            let (target, body) = (target.clone(), named(at, 2, "Ada"));
            tokio::spawn(async move {
                // Postgres ends the transaction of the stopped one, some time.
                eventually("the key is free", || async {
                    let answer = target.push("orders", &body).await;
                    (answer.status.is_success()).then_some(())
                })
                .await;
            })
        })
        .collect();
    others_go_on(&target, "o").await;
    for held in held {
        held.await.expect("it was written");
    }
    kill(pid, Signal::SIGCONT).expect("it is there");
    // Its own may have waited for too long by now.
    for answer in join_all(theirs).await {
        let answer = answer.expect("no panic").expect("it answers");
        assert!(
            [200, 201, 503].contains(&answer.status.as_u16()),
            "{}",
            answer.text
        );
    }
    check_events(&pool, target.store_id).await;
    nothing_stays_open(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_commit_whose_rows_are_locked_stops_nobody_else() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    // So many of the next commits are lost, some after they were done.
    let lost = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&lost);
    let one_less = |left: usize| left.checked_sub(1);
    let plan = move |_| match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
        Ok(left) if left % 2 == 0 => Fate::Unheard,
        Ok(_) => Fate::Unanswered,
        Err(_) => Fate::Passes,
    };
    let proxy = Proxy::start(&url, plan).await;
    let app = App::start_on(proxy.url.clone(), |_| {}, patient()).await;
    let target = Target::of(&app);
    run(&pool, GATE).await;
    run(&pool, "delete from gate").await;
    lost.store(HELD, Ordering::Relaxed);
    let (mut held, mut holders) = (Vec::new(), Vec::new());
    for at in 0..HELD {
        run(&pool, "insert into gate values (true)").await;
        held.push(push(&target, "orders", named(at, 1, "Ada")));
        eventually("it is in the middle of its transaction", || async {
            (at_gate(&pool).await == 1).then_some(())
        })
        .await;
        // Waits for the customer's phone, and gets it when the transaction is lost.
        let phone = format!(
            "insert into customer_phones (store_id, phone) values ({}, '+3361234000{at}')",
            app.store_id
        );
        let mut holder = pool.begin().await.expect("a transaction");
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *holder)
            .await
            .expect("a number");
        let holder = tokio::spawn(async move {
            let locked = sqlx::query(AssertSqlSafe(phone)).execute(&mut *holder);
            locked.await.expect("a lock");
            holder
        });
        // On a slow machine our statement may have been cut before, and the lock is there already.
        eventually("it waits", || async {
            let waits = "select exists (
                select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'
            )";
            let waits = sqlx::query_scalar(waits).bind(pid).fetch_one(&pool);
            let waits: bool = waits.await.expect("pg_stat_activity");
            (waits || holder.is_finished()).then_some(())
        })
        .await;
        run(&pool, "delete from gate").await;
        holders.push(holder.await.expect("no panic"));
    }
    others_go_on(&target, "o").await;
    assert!(!held.iter().any(JoinHandle::is_finished));
    for holder in holders {
        holder.rollback().await.expect("no more lock");
    }
    for answer in join_all(held).await {
        let answer = answer.expect("no panic").expect(201);
        assert_eq!(answer.outcome(), "created");
    }
    check_events(&pool, app.store_id).await;
    nothing_stays_open(&pool).await;
    app.stop().await;
}
