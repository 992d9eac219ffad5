//! A database that falls silent: connections that stay open without a word, some or all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyfold::edge::Limits;
use sqlx::PgPool;

use crate::support::app::App;
use crate::support::automations::{checkout, on_change};
use crate::support::database;
use crate::support::load::{Load, Target, check_events, nothing_stays_open, order, target};
use crate::support::process::Process;
use crate::support::proxy::{Fate, Proxy};
use crate::support::scale::{eventually, rounds};

const WRITERS: usize = 8;

/// Nothing that works comes near it; without a deadline a request would never be answered.
const IN_THE_END: Duration = Duration::from_secs(40);

/// An app behind a road without faults, and a way of our own to its database.
async fn quiet_road() -> (App, Proxy, PgPool) {
    let url = database::fresh().await;
    let proxy = Proxy::start(&url, |_| Fate::Passes).await;
    let app = App::start_on(proxy.url.clone(), |_| {}, Limits::default()).await;
    let looking = PgPool::connect_lazy(&url).expect("an address");
    (app, proxy, looking)
}

async fn readiness(app: &App) -> u16 {
    let asked = app.client.get(format!("{}/readyz", app.base)).send();
    asked.await.expect("it answers").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_connections_fall_silent_writes_reads_and_effects_go_on_over_new_ones() {
    let (app, proxy, looking) = quiet_road().await;
    let template = app.greeting().await;
    app.automate(&on_change("greet", "checkouts", template))
        .await;
    let load = Load::start(&Target::of(&app), WRITERS);
    load.proceed(40).await;
    for round in 0..rounds(2) {
        proxy.fall_silent();
        let silent_since = Instant::now();
        load.proceed(40).await;
        println!("writes go on after {:?}", silent_since.elapsed());
        app.get("orders?limit=1").await.expect(200);
        eventually("it is ready", || async {
            (readiness(&app).await == 200).then_some(())
        })
        .await;
        let id = format!("checkout-{round}");
        app.post("checkouts", &checkout(&id, "abandoned"))
            .await
            .expect(201);
        eventually("the change has its run", || async {
            let found = app.get(&format!("checkouts/{id}/runs")).await.json();
            (found["data"].as_array().map(Vec::len) == Some(1)).then_some(())
        })
        .await;
    }
    let told = load.stop_and_check(&looking, app.store_id).await;
    println!("fell silent: {told:?}");
    nothing_stays_open(&looking).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_silent_altogether_is_told_of_and_heals() {
    let (app, proxy, looking) = quiet_road().await;
    app.post("orders", &order("before", 1, 1)).await.expect(201);
    assert_eq!(readiness(&app).await, 200);
    proxy.set_silent(true);
    proxy.fall_silent();
    let target = Target::of(&app);
    let writes = (0..WRITERS).map(|writer| {
        let target = target.clone();
        async move {
            let body = order(&format!("during-{writer}"), writer, 1);
            let answer = tokio::time::timeout(IN_THE_END, target.push("orders", &body)).await;
            let answer = answer.expect("it is answered").expect(503);
            let known = ["database_unavailable", "outcome_unknown", "overloaded"];
            assert!(known.contains(&answer.code().as_str()), "{}", answer.text);
        }
    });
    let not_ready = eventually("it is not ready", || async {
        (readiness(&app).await == 503).then_some(())
    });
    tokio::join!(futures_util::future::join_all(writes), not_ready);
    proxy.set_silent(false);
    eventually("writes go on", || async {
        let answer = target.push("orders", &order("after", 1, 1)).await;
        answer.status.is_success().then_some(())
    })
    .await;
    eventually("it is ready again", || async {
        (readiness(&app).await == 200).then_some(())
    })
    .await;
    check_events(&looking, app.store_id).await;
    app.stop().await;
}

/// Requests that come together.
const TOGETHER: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_key_share_one_look_up_and_its_failure() {
    let look_ups = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&look_ups);
    let url = database::fresh().await;
    let proxy = Proxy::watch(&url, Duration::ZERO, move |asking| {
        if !asking.statement.contains("from api_keys") {
            return Fate::Passes;
        }
        counter.fetch_add(1, Ordering::Relaxed);
        Fate::Deaf
    })
    .await;
    let app = App::start_on(proxy.url, |_| {}, Limits::default()).await;
    let asked = (0..TOGETHER).map(|_| app.get("orders"));
    let answers = tokio::time::timeout(IN_THE_END, futures_util::future::join_all(asked)).await;
    for answer in answers.expect("they are answered") {
        assert_eq!(answer.expect(503).code(), "database_unavailable");
    }
    // One, and another one over another connection.
    assert_eq!(look_ups.load(Ordering::Relaxed), 2);
    app.stop().await;
}

/// Makes Postgres say that its disk is full when an order is to be stored; counts how often.
const FULL: &str = "
    create sequence attempts;
    create function full_disk() returns trigger language plpgsql as $$
    begin
        perform nextval('attempts');
        raise exception 'no space left on device' using errcode = '53100';
    end $$;
    create trigger full_disk before insert on orders execute function full_disk()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_at_once_and_whoever_can_not_write_is_not_ready() {
    let app = App::start().await;
    assert_eq!(readiness(&app).await, 200);
    sqlx::raw_sql(FULL).execute(&app.pool).await.expect("full");
    let refused = app.post("orders", &order("full", 1, 1)).await.expect(503);
    assert_eq!(refused.code(), "database_unavailable");
    let attempts: i64 = sqlx::query_scalar("select last_value from attempts")
        .fetch_one(&app.pool)
        .await
        .expect("counted");
    assert_eq!(attempts, 1, "a full disk has no room a moment later either");
    assert_eq!(readiness(&app).await, 503);
    app.get("orders").await.expect(200);
    sqlx::raw_sql("drop trigger full_disk on orders")
        .execute(&app.pool)
        .await
        .expect("there is room");
    app.post("orders", &order("full", 1, 1)).await.expect(201);
    assert_eq!(readiness(&app).await, 200);
    app.stop().await;
}

/// What can happen on the road, anywhere.
const FAULTS: [Fate; 7] = [
    Fate::Unheard,
    Fate::Unanswered,
    Fate::Deaf,
    Fate::Mute,
    Fate::HalfAsked,
    Fate::HalfAnswered,
    Fate::Delayed(Duration::from_millis(300)),
];

/// Statements between two faults, at the least.
const EVERY: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_lose_nothing_whatever_happens_on_the_road() {
    let url = database::fresh().await;
    let (asked, faults) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let (count, most) = (Arc::clone(&faults), rounds(3) * FAULTS.len());
    let proxy = Proxy::watch(&url, Duration::ZERO, move |_| {
        let n = asked.fetch_add(1, Ordering::Relaxed);
        let is_due = n % EVERY == EVERY - 1 && count.load(Ordering::Relaxed) < most;
        if is_due {
            FAULTS[count.fetch_add(1, Ordering::Relaxed) % FAULTS.len()]
        } else {
            Fate::Passes
        }
    })
    .await;
    let looking = PgPool::connect_lazy(&url).expect("an address");
    let servers = [Process::serve(&proxy.url), Process::serve(&proxy.url)];
    let one = target(&servers[0].base, &looking).await;
    let other = Target {
        base: servers[1].base.clone(),
        ..one.clone()
    };
    // Each process has writers of its own keys.
    let loads = [(&one, "one-"), (&other, "other-")]
        .map(|(target, name)| Load::start_named(target, WRITERS, name));
    for wanted in 1..=most {
        eventually("the next fault has come", || async {
            (faults.load(Ordering::Relaxed) >= wanted).then_some(())
        })
        .await;
    }
    for load in &loads {
        load.proceed(80).await;
    }
    for (load, server) in loads.into_iter().zip(&servers) {
        let told = load.stop_and_check(&looking, one.store_id).await;
        println!("{most} faults: {told:?}");
        for (status, code, retry_after) in told.refusals.keys() {
            let known = ["database_unavailable", "outcome_unknown", "overloaded"];
            let fits = *status == 503 && *retry_after && known.contains(&code.as_str());
            assert!(fits, "{told:?}");
        }
        eventually("it is ready", || async {
            let asked = one.client.get(format!("{}/readyz", server.base)).send();
            (asked.await.expect("it answers").status() == 200).then_some(())
        })
        .await;
    }
    check_events(&looking, one.store_id).await;
    nothing_stays_open(&looking).await;
}
