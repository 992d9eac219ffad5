//! The feed under writers who commit late: nothing is skipped, nothing comes twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use keyfold::edge::Limits;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::support::app::{Answer, App};
use crate::support::load::{Load, Target, order};
use crate::support::scale::rounds;

/// A page of the feed.
async fn page(target: &Target, query: &str) -> Answer {
    let url = format!(
        "{}/api/v1/stores/{}/events?{query}",
        target.base, target.store_id
    );
    let request = target.client.get(url).bearer_auth(&target.key);
    let response = request.send().await.expect("the service answers");
    crate::support::app::answer(response).await
}

/// Pages without pause until `enough` is set and nothing is left.
async fn follow(target: Target, filter: &'static str, enough: Arc<AtomicBool>) -> Vec<Value> {
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let last_round = enough.load(Ordering::Relaxed);
        let answer = page(&target, &format!("after={after}&limit=200{filter}"))
            .await
            .expect(200);
        let mut body = answer.json();
        let next = body["next_after"].as_i64().expect("never null");
        assert!(next >= after, "{next} after {after}");
        after = next;
        events.append(body["data"].as_array_mut().expect("a list"));
        if last_round && body["has_more"] == false {
            return events;
        }
    }
}

/// Transactions that write an event with an old time and commit late, one after the other; each is
/// begun before and committed after many events of others. Gives their ids.
async fn commit_late(app_url: String, store_id: i64, enough: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut connection = PgConnection::connect(&app_url).await.expect("a connection");
    let mut ids = BTreeSet::new();
    while !enough.load(Ordering::Relaxed) {
        let id = keyfold::clock::Clock::system().new_id();
        let mut transaction = connection.begin().await.expect("a transaction");
        sqlx::query(
            "insert into events
                (store_id, id, type, resource, record_id, version, created_at)
            values ($1, $2, 'order.created', 'orders', $2, 1, now() - interval '1 minute')",
        )
        .bind(store_id)
        .bind(id)
        .execute(&mut *transaction)
        .await
        .expect("an event");
        let wait_ms = rand::random_range(0..200);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        transaction.commit().await.expect("it commits");
        ids.insert(id.to_string());
    }
    ids
}

/// Makes some commits of the service slow: a trigger that runs at the commit.
async fn slow_down_some_commits(app: &App) {
    sqlx::raw_sql(
        "create function dawdle() returns trigger language plpgsql as $$
        begin
            if random() < 0.1 then
                perform pg_sleep(random() * 0.1);
            end if;
            return null;
        end $$;
        create constraint trigger dawdle after insert on events
            deferrable initially deferred for each row execute function dawdle()",
    )
    .execute(&app.pool)
    .await
    .expect("a trigger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_read_once_and_in_order_however_late_it_was_committed() {
    let one = App::start().await;
    let other = App::start_on(one.database_url.clone(), |_| {}, Limits::default()).await;
    slow_down_some_commits(&one).await;
    let target = Target::of(&one);
    let elsewhere = Target {
        base: other.base.clone(),
        ..target.clone()
    };
    let enough = Arc::new(AtomicBool::new(false));
    let late = commit_late(one.database_url.clone(), one.store_id, Arc::clone(&enough));
    let late = tokio::spawn(late);
    let loads = [Load::start(&target, 4), Load::start(&elsewhere, 4)];
    let over = Arc::new(AtomicBool::new(false));
    let readers = [
        tokio::spawn(follow(target.clone(), "", Arc::clone(&over))),
        tokio::spawn(follow(elsewhere.clone(), "", Arc::clone(&over))),
        tokio::spawn(follow(elsewhere, "&resource=orders", Arc::clone(&over))),
    ];

    let until = Instant::now() + Duration::from_secs(rounds(5) as u64);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    enough.store(true, Ordering::Relaxed);
    let late = late.await.expect("no panic");
    // Both write under the same keys, so what one was told may have been changed by the other.
    for load in loads {
        load.stop().await;
    }
    over.store(true, Ordering::Relaxed);
    let mut read = Vec::new();
    for reader in readers {
        read.push(reader.await.expect("no panic"));
    }
    let stored: Vec<(Uuid, i64)> =
        sqlx::query_as("select id, position from events order by position")
            .fetch_all(&one.pool)
            .await
            .expect("all have a position");
    println!("feed: {} events, {} of them late", stored.len(), late.len());
    let stored: Vec<(String, i64)> = stored
        .into_iter()
        .map(|(id, position)| (id.to_string(), position))
        .collect();
    assert!(
        stored
            .iter()
            .map(|(_, position)| *position)
            .eq(1..=stored.len() as i64),
        "gaps"
    );
    assert!(
        late.len() > 5
            && late
                .iter()
                .all(|id| stored.iter().any(|(stored, _)| stored == id))
    );
    assert_eq!(named(&read[0]), stored);
    assert_eq!(named(&read[1]), stored);
    let orders: Vec<&Value> = read[0]
        .iter()
        .filter(|event| event["resource"] == "orders")
        .collect();
    assert!(orders.len() < stored.len() && read[2].iter().eq(orders));
    check_versions(&read[0]);
    one.stop().await;
    other.stop().await;
}

fn named(events: &[Value]) -> Vec<(String, i64)> {
    let id = |event: &Value| event["id"].as_str().expect("an id").to_owned();
    let position = |event: &Value| event["position"].as_i64().expect("a position");
    events
        .iter()
        .map(|event| (id(event), position(event)))
        .collect()
}

/// Per record the versions come as 1, 2, 3 …
fn check_versions(events: &[Value]) {
    let mut last = BTreeMap::<String, i64>::new();
    for event in events {
        let version = last.entry(event["record_id"].to_string()).or_default();
        *version += 1;
        assert_eq!(event["version"], *version, "{event}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_stretch_is_gone_with_a_word_and_never_a_silent_gap() {
    let app = App::start().await;
    let target = Target::of(&app);
    for n in 0..3 {
        target
            .push("orders", &order(&format!("old-{n}"), n, 1))
            .await
            .expect(201);
    }
    let old = page(&target, "").await.expect(200).json();
    assert_eq!(old["next_after"], 6, "three orders, three customers");
    app.clock.advance(TimeDelta::days(31));
    target.push("orders", &order("new", 0, 2)).await.expect(201);
    keyfold::maintenance::clean(&app.state).await;

    for after in [0, 5] {
        let gone = page(&target, &format!("after={after}")).await.expect(410);
        assert_eq!(gone.code(), "cursor_expired");
    }
    for query in ["", "after=6"] {
        let kept = page(&target, query).await.expect(200).json();
        let events = kept["data"].as_array().expect("a list");
        assert_eq!(events.len(), 1, "{kept}");
        assert_eq!(events[0]["external_id"], "new");
        assert_eq!(
            (&kept["next_after"], &kept["has_more"]),
            (&Value::from(7), &Value::from(false))
        );
    }
    let beyond = page(&target, "after=8").await.expect(400);
    assert_eq!(beyond.code(), "cursor_invalid");
    let polled = page(&target, "after=7").await.expect(200).json();
    assert_eq!(
        (&polled["data"], &polled["next_after"]),
        (&Value::Array(Vec::new()), &Value::from(7))
    );

    // Everything gone: an empty feed goes on where it was.
    app.clock.advance(TimeDelta::days(31));
    keyfold::maintenance::clean(&app.state).await;
    let empty = page(&target, "").await.expect(200).json();
    assert_eq!(
        (&empty["next_after"], app.count("events").await),
        (&Value::from(7), 0)
    );
    target
        .push("orders", &order("newer", 0, 3))
        .await
        .expect(201);
    let next = page(&target, "after=7").await.expect(200).json();
    assert_eq!(next["data"][0]["position"], 8);
    app.stop().await;
}

#[tokio::test]
async fn an_event_of_a_fast_clock_goes_with_the_old_ones_behind_it() {
    let app = App::start().await;
    let target = Target::of(&app);
    let fast = order("fast", 0, 1);
    target.push("orders", &fast).await.expect(201);
    page(&target, "").await.expect(200);
    let dated = sqlx::query("update events set created_at = created_at + interval '10 years'");
    let dated = dated.execute(&app.pool).await.expect("ours");
    assert_eq!(dated.rows_affected(), 2, "an order, a customer");
    keyfold::maintenance::clean(&app.state).await;
    assert_eq!(app.count("events").await, 2, "nothing old is behind them");

    target.push("orders", &order("old", 1, 1)).await.expect(201);
    app.clock.advance(TimeDelta::days(31));
    target.push("orders", &order("new", 0, 2)).await.expect(201);
    keyfold::maintenance::clean(&app.state).await;
    let kept = page(&target, "").await.expect(200).json();
    let events = kept["data"].as_array().expect("a list");
    assert_eq!(events.len(), 1, "{kept}");
    assert_eq!(events[0]["external_id"], "new");
    app.stop().await;
}
