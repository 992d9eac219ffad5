//! Group commit from outside: what waits together is written together, and nobody's answer is
//! another one's.
//!
//! Two writes are held back inside the database, and so both lanes are taken; what is sent meanwhile
//! waits, and is one batch when they are let go.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use keyfold::config::Config;
use keyfold::edge::Limits;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;

use crate::support::app::{Answer, App};
use crate::support::database;
use crate::support::load::{Target, check_events, nothing_stays_open, order};
use crate::support::process::Process;
use crate::support::proxy::{Fate, Proxy};
use crate::support::raw;
use crate::support::scale::{DEADLINE, eventually};

/// Writes that occupy the lanes.
const LANES: usize = 2;

/// Holds inserts of takers back for as long as the gate has a row.
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
    when (new.external_id like 'taker-%') execute function wait_at_gate();";

/// Backends that wait at the gate.
const AT_GATE: &str = "select pid from pg_stat_activity
    where datname = current_database() and wait_event = 'PgSleep'";

/// A service whose lanes are taken.
struct Taken {
    app: App,
    target: Target,
    pool: PgPool,
    takers: Vec<JoinHandle<Answer>>,
}

/// Nobody is refused for waiting, however slow the machine is. A lane whose statement was cut, as it
/// stood at the gate for too long, waits for the locks of that one and does not let others go on.
fn patient() -> Limits {
    Limits {
        queue_timeout: Duration::from_secs(300),
        lock_wait: DEADLINE,
        ..Limits::default()
    }
}

impl Taken {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        Self::with(change, patient()).await
    }

    async fn with(change: impl FnOnce(&mut Config), limits: Limits) -> Self {
        let app = App::start_with(change, limits).await;
        let pool = app.pool.clone();
        Self::over(app, pool, LANES).await
    }

    /// Over an app that reaches its database by another way than we do.
    async fn over(app: App, pool: PgPool, takers: usize) -> Self {
        let target = Target::of(&app);
        sqlx::raw_sql(GATE).execute(&pool).await.expect("a gate");
        let mut taken = Self {
            app,
            target,
            pool,
            takers: Vec::new(),
        };
        for taker in 0..takers {
            let body = order(&format!("taker-{taker}"), 9_000 + taker, 1);
            taken.takers.push(taken.push(body));
            eventually("a lane is at the gate", || async {
                (taken.at_gate().await.len() == taker + 1).then_some(())
            })
            .await;
        }
        taken
    }

    async fn at_gate(&self) -> Vec<i32> {
        let pids = sqlx::query_scalar(AT_GATE).fetch_all(&self.pool).await;
        pids.expect("pg_stat_activity")
    }

    fn push(&self, body: Value) -> JoinHandle<Answer> {
        Self::push_to(&self.target, body)
    }

    fn push_to(target: &Target, body: Value) -> JoinHandle<Answer> {
        let target = target.clone();
        tokio::spawn(async move { target.push("orders", &body).await })
    }

    /// How many single writes wait.
    async fn depth(&self) -> usize {
        let metrics = self
            .target
            .client
            .get(format!("{}/metrics", self.target.base));
        let text = metrics.send().await.expect("metrics").text().await;
        let text = text.expect("text");
        let depth = text
            .lines()
            .find_map(|line| line.strip_prefix("keyfold_write_queue_depth "));
        depth.expect("a gauge").parse().expect("a number")
    }

    /// Sends orders that wait, all at once; gives their answers to come.
    async fn queue(&self, bodies: Vec<Value>) -> Vec<JoinHandle<Answer>> {
        let waiting: Vec<_> = bodies.into_iter().map(|body| self.push(body)).collect();
        self.wait_for_depth(waiting.len()).await;
        waiting
    }

    /// Sends orders that wait, one after the other.
    async fn queue_in_order(&self, bodies: Vec<Value>) -> Vec<JoinHandle<Answer>> {
        let mut waiting = Vec::new();
        for body in bodies {
            waiting.push(self.push(body));
            self.wait_for_depth(waiting.len()).await;
        }
        waiting
    }

    async fn wait_for_depth(&self, wanted: usize) {
        eventually("it waits", || async {
            (self.depth().await == wanted).then_some(())
        })
        .await;
    }

    /// Lets the lanes go on; the writes that took them end well.
    async fn release(&mut self) {
        sqlx::query("delete from gate")
            .execute(&self.pool)
            .await
            .expect("the gate opens");
        for taker in self.takers.drain(..) {
            taker.await.expect("no panic").expect(201);
        }
    }

    /// In how many transactions the events of these orders were written.
    async fn transactions(&self, external_ids: &[String]) -> i64 {
        sqlx::query_scalar(
            "select count(distinct xmin::text) from events where external_id = any($1)",
        )
        .bind(external_ids)
        .fetch_one(&self.pool)
        .await
        .expect("events")
    }
}

async fn answers(waiting: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    let answers = join_all(waiting).await;
    answers
        .into_iter()
        .map(|answer| answer.expect("no panic"))
        .collect()
}

/// Different orders, each of its own customer.
fn orders(names: &str, count: usize) -> (Vec<String>, Vec<Value>) {
    let keys: Vec<String> = (0..count).map(|n| format!("{names}-{n}")).collect();
    let bodies = keys.iter().enumerate();
    let bodies = bodies.map(|(n, key)| order(key, n, n as u64)).collect();
    (keys, bodies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_written_in_one_transaction_and_each_gets_its_own_answer() {
    let mut taken = Taken::start(|_| {}).await;
    let (keys, bodies) = orders("o", 40);
    let waiting = taken.queue(bodies).await;
    taken.release().await;
    for ((n, key), answer) in keys.iter().enumerate().zip(answers(waiting).await) {
        let body = answer.expect(201).json();
        assert_eq!(body["external_id"], **key);
        assert_eq!(body["metadata"]["n"], n);
        assert_eq!(body["customer"]["phone"], format!("+3361234{n:04}"));
    }
    assert_eq!(taken.transactions(&keys).await, 1);
    check_events(&taken.app.pool, taken.app.store_id).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_one_is_no_group() {
    let mut taken = Taken::start(|config| config.write_batch = 1).await;
    let (keys, bodies) = orders("o", 12);
    let waiting = taken.queue(bodies).await;
    taken.release().await;
    for answer in answers(waiting).await {
        answer.expect(201);
    }
    assert_eq!(taken.transactions(&keys).await, 12);
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_waits_ten_times_has_ten_versions_in_order_of_arrival() {
    let mut taken = Taken::start(|_| {}).await;
    // The last one comes again: a replay inside its own batch.
    let numbers = (0..10).chain([9]);
    let bodies = numbers.map(|n| order("same", 1, n)).collect();
    let waiting = taken.queue_in_order(bodies).await;
    taken.release().await;
    for (n, answer) in answers(waiting).await.into_iter().enumerate() {
        let expected = match n {
            0 => (201, "created"),
            10 => (200, "unchanged"),
            _ => (200, "updated"),
        };
        assert_eq!((answer.status.as_u16(), answer.outcome()), expected);
        let body = answer.json();
        let version = n.min(9) + 1;
        assert_eq!(
            (&body["version"], &body["metadata"]["n"]),
            (&json!(version), &json!(n.min(9)))
        );
    }
    assert_eq!(taken.transactions(&["same".to_owned()]).await, 1);
    check_events(&taken.app.pool, taken.app.store_id).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_with_bad_rows_only_their_callers_hear_of_them() {
    let app = App::start_with(|_| {}, patient()).await;
    let pool = app.pool.clone();
    // Nothing that passes our checks is refused by Postgres, so the refusal is made here: a value
    // that it can't hold, and a broken rule of the schema.
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$
        begin
            if new.external_id = 'o-7' then
                raise exception using errcode = '22023';
            elsif new.external_id = 'o-20' then
                raise exception using errcode = '23514';
            end if;
            return new;
        end $$;
        create trigger refuse before insert on customers for each row
        execute function refuse();",
    )
    .execute(&pool)
    .await
    .expect("a trigger");
    let mut taken = Taken::over(app, pool, LANES).await;
    let (_, mut bodies) = orders("o", 30);
    for (n, body) in bodies.iter_mut().enumerate() {
        body["customer"]["external_id"] = json!(format!("o-{n}"));
    }
    let waiting = taken.queue(bodies).await;
    taken.release().await;
    for (n, answer) in answers(waiting).await.into_iter().enumerate() {
        match n {
            7 => assert_eq!(answer.expect(422).code(), "value_refused"),
            20 => assert_eq!(answer.expect(500).code(), "internal"),
            _ => {
                let body = answer.expect(201).json();
                assert_eq!(body["external_id"], format!("o-{n}"));
            }
        }
    }
    assert_eq!(taken.app.count("orders").await, 28 + 2);
    check_events(&taken.app.pool, taken.app.store_id).await;
    nothing_stays_open(&taken.app.pool).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_commit_breaks_is_written_once_and_each_201_is_given_once() {
    for fate in [Fate::Unheard, Fate::Unanswered, Fate::Unwatched] {
        let url = database::fresh().await;
        // The first two commits are those of the takers.
        let proxy = Proxy::start(&url, move |n| if n == LANES { fate } else { Fate::Passes }).await;
        let app = App::start_on(proxy.url.clone(), |_| {}, patient()).await;
        let straight = PgPool::connect_lazy(&url).expect("an address");
        let mut taken = Taken::over(app, straight, LANES).await;
        let (keys, bodies) = orders("o", 20);
        let waiting = taken.queue(bodies).await;
        taken.release().await;
        for (n, answer) in answers(waiting).await.into_iter().enumerate() {
            assert_eq!(answer.outcome(), "created", "{fate:?}: {}", answer.text);
            assert_eq!(answer.expect(201).json()["metadata"]["n"], n);
        }
        assert!(proxy.commits() > LANES, "no commit broke");
        assert_eq!(taken.transactions(&keys).await, 1, "{fate:?}");
        check_events(&taken.app.pool, taken.app.store_id).await;
        nothing_stays_open(&taken.app.pool).await;
        taken.app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_whose_connections_die_go_on_with_others() {
    let mut taken = Taken::start(|_| {}).await;
    let (_, bodies) = orders("o", 10);
    let waiting = taken.queue(bodies).await;
    for pid in taken.at_gate().await {
        sqlx::query("select pg_terminate_backend($1)")
            .bind(pid)
            .execute(&taken.pool)
            .await
            .expect("it is there");
    }
    taken.release().await;
    for answer in answers(waiting).await {
        answer.expect(201);
    }
    check_events(&taken.app.pool, taken.app.store_id).await;
    nothing_stays_open(&taken.app.pool).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_before_the_body_is_read_and_late() {
    let mut taken = Taken::start(|config| config.write_queue = 5).await;
    let (_, bodies) = orders("o", 5);
    let waiting = taken.queue(bodies).await;

    let asked = Instant::now();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: keyfold\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 1000\r\n\r\n",
        taken.app.path("orders"),
        taken.app.key
    );
    let mut stream = raw::send(&taken.target, head.as_bytes()).await;
    let refused = raw::read_until(&mut stream, "overloaded").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("retry-after: 1"), "{refused}");
    assert!(asked.elapsed() >= Duration::from_millis(200));
    drop(stream);

    taken.release().await;
    for answer in answers(waiting).await {
        answer.expect(201);
    }
    taken
        .app
        .post("orders", &order("later", 1, 1))
        .await
        .expect(201);
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_that_wait_are_bounded_too() {
    let mut taken = Taken::start(|_| {}).await;
    let large = |n: usize| {
        let mut body = order(&format!("large-{n}"), n, 1);
        body["line_items"] = json!([{ "text": "x".repeat(1_000_000) }]);
        body
    };
    let sent: Vec<_> = (0..50).map(|n| taken.push(large(n))).collect();
    eventually("some are refused", || async {
        let ended = sent.iter().filter(|answer| answer.is_finished());
        (ended.count() >= 10).then_some(())
    })
    .await;
    taken.release().await;
    let answers = answers(sent).await;
    let taken_in = answers.iter().filter(|answer| answer.status == 201).count();
    assert!((1..=40).contains(&taken_in), "{taken_in} MB waited");
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (503, "overloaded")
        );
    }
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_too_long_is_refused_and_not_written() {
    let limits = Limits {
        queue_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let mut taken = Taken::with(|_| {}, limits).await;
    let (keys, bodies) = orders("o", 3);
    let waiting = bodies.into_iter().map(|body| taken.push(body)).collect();
    for answer in answers(waiting).await {
        let answer = answer.expect(503);
        assert_eq!(answer.code(), "overloaded");
        assert_eq!(answer.header("retry-after"), "1");
    }
    taken.release().await;
    assert_eq!(taken.transactions(&keys).await, 0);
    assert_eq!(taken.depth().await, 0);
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_hangs_up_while_waiting_takes_nothing_back() {
    let mut taken = Taken::start(|_| {}).await;
    let request = raw::post(&taken.target, "orders", &order("left", 1, 1).to_string());
    let stream = raw::send(&taken.target, &request).await;
    eventually("it waits", || async {
        (taken.depth().await == 1).then_some(())
    })
    .await;
    drop(stream);
    taken.release().await;
    eventually("it is written", || async {
        (taken.app.get("orders/left").await.status == 200).then_some(())
    })
    .await;
    check_events(&taken.app.pool, taken.app.store_id).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_under_way_is_waited_for_and_others_pass() {
    let app = App::start_with(|_| {}, patient()).await;
    let pool = app.pool.clone();
    let mut taken = Taken::over(app, pool, LANES - 1).await;
    // The same order, and another order of the same customer, as one that is at the database.
    // A later write of a key that waits must not overtake, either.
    let bodies = [
        order("taker-0", 9_000, 2),
        order("shared", 9_000, 1),
        order("shared", 8_000, 2),
    ];
    let waiting = taken.queue_in_order(bodies.to_vec()).await;
    let other = taken.app.post("orders", &order("other", 1, 1)).await;
    assert_eq!(other.expect(201).json()["version"], 1);
    assert_eq!(taken.depth().await, 3);
    taken.release().await;
    let told: Vec<_> = answers(waiting)
        .await
        .iter()
        .map(|answer| {
            (
                answer.outcome().to_owned(),
                answer.json()["version"].as_i64(),
            )
        })
        .collect();
    let expected = [("updated", 2), ("created", 1), ("updated", 2)];
    assert_eq!(
        told,
        expected.map(|(outcome, version)| (outcome.to_owned(), Some(version)))
    );
    check_events(&taken.app.pool, taken.app.store_id).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_process_writes_of_one_customer_do_not_race_each_other() {
    let url = database::fresh().await;
    let server = Process::serve(&url);
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let target = crate::support::load::target(&server.base, &pool).await;
    let writes = (0..400_u64).map(|n| {
        let mut body = order(&format!("o-{n}"), 1, n);
        body["customer"]["lifetime_value"] = json!(n);
        let target = target.clone();
        async move { target.push("orders", &body).await.expect(201) }
    });
    // Fewer than may wait at any time, so that nobody is refused.
    let written = stream::iter(writes).buffer_unordered(100).count().await;
    assert_eq!(written, 400);
    let metrics = target.client.get(format!("{}/metrics", target.base)).send();
    let metrics = metrics.await.expect("metrics").text().await.expect("text");
    let retries = metrics
        .lines()
        .find(|line| line.starts_with("keyfold_write_retries_total "));
    assert_eq!(retries, None, "some batch lost a race");
    check_events(&pool, target.store_id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_never_ends_does_not_keep_single_writes_waiting() {
    let app = App::start_with(|config| config.write_lanes = 1, Limits::default()).await;
    let target = Target::of(&app);
    let mut stream = raw::send(
        &target,
        &raw::stream_head(&target, "orders/bulk?results=failed"),
    )
    .await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let streaming = tokio::spawn(async move {
        let mut stopped = std::pin::pin!(stopped);
        for n in 0_u64.. {
            let lines: String = (0..200)
                .map(|at| format!("{}\n", order(&format!("s-{at}"), at, n)))
                .collect();
            stream
                .write_all(&raw::chunk(lines.as_bytes()))
                .await
                .expect("it is taken");
            if futures_util::poll!(&mut stopped).is_ready() {
                break;
            }
        }
        stream
            .write_all(raw::LAST_CHUNK)
            .await
            .expect("it is taken");
        raw::read_until(&mut stream, r#""complete":true"#).await
    });
    for n in 0..30 {
        app.post("orders", &order(&format!("single-{n}"), 5_000 + n, 1))
            .await
            .expect(201);
    }
    assert!(!streaming.is_finished());
    drop(stop);
    streaming.await.expect("it went well to its end");
    check_events(&app.pool, app.store_id).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_writes_what_is_queued_and_loses_nothing_that_it_acknowledged() {
    let url = database::fresh().await;
    let mut server = Process::serve(&url);
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let target = crate::support::load::target(&server.base, &pool).await;
    sqlx::raw_sql(GATE).execute(&pool).await.expect("a gate");
    // One after the other: together they could be one batch, and one lane would stay free.
    for taker in 0..LANES {
        let target = target.clone();
        let body = order(&format!("taker-{taker}"), 9_000 + taker, 1);
        tokio::spawn(async move { target.post("orders", &body).await });
        eventually("a lane is at the gate", || async {
            let at_gate = sqlx::query_scalar::<_, i32>(AT_GATE).fetch_all(&pool);
            (at_gate.await.expect("pg_stat_activity").len() == taker + 1).then_some(())
        })
        .await;
    }
    let (keys, bodies) = orders("o", 100);
    let sent: Vec<JoinHandle<reqwest::Result<Answer>>> = bodies
        .into_iter()
        .map(|body| {
            let target = target.clone();
            tokio::spawn(async move { target.post("orders", &body).await })
        })
        .collect();
    eventually("they wait", || async {
        let metrics = target.client.get(format!("{}/metrics", target.base));
        let text = metrics.send().await.expect("metrics").text().await;
        let text = text.expect("text");
        text.lines()
            .any(|line| line == "keyfold_write_queue_depth 100")
            .then_some(())
    })
    .await;
    server.ask_to_end();
    tokio::time::sleep(Duration::from_secs(1)).await;
    sqlx::query("delete from gate")
        .execute(&pool)
        .await
        .expect("the gate opens");
    let mut acknowledged = BTreeSet::new();
    for (key, answer) in keys.into_iter().zip(sent) {
        // A connection that was closed instead is no answer, and promises nothing.
        if let Ok(answer) = answer.await.expect("no panic") {
            let status = answer.status.as_u16();
            assert!([201, 503].contains(&status), "{status} {}", answer.text);
            if status == 201 {
                acknowledged.insert(key);
            }
        }
    }
    assert!(!acknowledged.is_empty(), "nothing was queued");
    let stored: Vec<String> = sqlx::query_scalar("select external_id from orders")
        .fetch_all(&pool)
        .await
        .expect("orders");
    let stored: BTreeSet<String> = stored.into_iter().collect();
    assert!(acknowledged.is_subset(&stored));
    check_events(&pool, target.store_id).await;
    let status = eventually("it ends", || {
        let ended = server.ended();
        async move { ended }
    })
    .await;
    assert!(status.success(), "{status}");
    println!(
        "{} of 100 were acknowledged in a shutdown",
        acknowledged.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_held_up_keeps_nobody_waiting_for_its_turn() {
    let app = App::start_with(|config| config.lanes_of_singles = Some(1), patient()).await;
    let pool = app.pool.clone();
    let mut taken = Taken::over(app, pool, LANES - 1).await;
    let (keys, bodies) = orders("o", 5);
    for body in bodies {
        taken.app.post("orders", &body).await.expect(201);
    }
    let many = json!({ "items": [order("bulk-0", 8_000, 1), order("bulk-1", 8_001, 1)] });
    let bulk = taken.app.post("orders/bulk", &many).await.expect(200);
    assert_eq!(bulk.json()["results"][1]["outcome"], "created");
    assert_eq!(taken.at_gate().await.len(), 1);
    assert_eq!(taken.transactions(&keys).await, 5);
    taken.release().await;
    check_events(&taken.app.pool, taken.app.store_id).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_floods_takes_neither_places_nor_turns_from_another_one() {
    const PLACES: u16 = 60;
    let settings = |config: &mut Config| {
        config.write_queue = PLACES.into();
        config.write_batch = PLACES.into();
    };
    let places = usize::from(PLACES);
    let mut taken = Taken::start(settings).await;
    let mut waiting = Vec::new();
    let (flooding, bodies) = orders("flood", places);
    waiting.extend(taken.queue(bodies).await);
    let mut more = vec![taken.push(order("more", 1, 1))];
    // Half of all places is the share of one of two stores, and a third that of one of three.
    let (second, third) = (
        Target::neighbour(&taken.app).await,
        Target::neighbour(&taken.app).await,
    );
    let mut keys = flooding;
    for (target, name, share) in [
        (&second, "second", places / 2),
        (&third, "third", places / 3),
    ] {
        let (own, bodies) = orders(name, share);
        let pushed = bodies.into_iter().map(|body| Taken::push_to(target, body));
        waiting.extend(pushed);
        taken.wait_for_depth(waiting.len()).await;
        more.push(Taken::push_to(target, order("more", 1, 1)));
        keys.extend(own);
    }
    for refused in answers(more).await {
        assert_eq!(refused.expect(503).code(), "overloaded");
    }

    taken.release().await;
    for answer in answers(waiting).await {
        answer.expect(201);
    }
    // A batch takes one write of each store in turn, as long as each has some.
    let first_batch: Vec<String> = sqlx::query_scalar(
        "select external_id from events e
        where external_id = any($1) and xmin::text::bigint = (
            select xmin::text::bigint from events where external_id = 'third-0'
        )",
    )
    .bind(keys)
    .fetch_all(&taken.pool)
    .await
    .expect("events");
    for name in ["flood", "second", "third"] {
        let of_it = first_batch.iter().filter(|key| key.starts_with(name));
        assert_eq!(of_it.count(), places / 3, "{name}");
    }
    for store_id in [taken.app.store_id, second.store_id, third.store_id] {
        check_events(&taken.app.pool, store_id).await;
    }
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_that_meets_a_lock_the_others_are_written_at_once() {
    let limits = Limits {
        lock_wait: Limits::default().lock_wait,
        ..patient()
    };
    let app = App::start_with(|_| {}, limits).await;
    for n in [7, 8] {
        let body = order(&format!("o-{n}"), n, 1_000);
        app.post("orders", &body).await.expect(201);
    }
    let pool = app.pool.clone();
    let mut holder = pool.begin().await.expect("a transaction");
    sqlx::query("select from orders where external_id in ('o-7', 'o-8') for update")
        .execute(&mut *holder)
        .await
        .expect("a lock");
    let mut taken = Taken::over(app, pool, LANES).await;
    let (_, mut bodies) = orders("o", 40);
    // It has the customer of one that is held.
    bodies.push(order("other", 8, 1));
    let waiting = taken.queue(bodies).await;
    taken.release().await;
    eventually("the others are answered", || async {
        let answered = waiting.iter().filter(|answer| answer.is_finished());
        (answered.count() == 38).then_some(())
    })
    .await;
    // What is held up is not waiting.
    taken.wait_for_depth(0).await;
    // Somebody who comes later, for the same key.
    let late = taken.push(order("o-7", 7, 3_000));
    taken.wait_for_depth(1).await;
    assert_eq!(taken.app.count("orders").await, 2 + 38 + 2);
    holder.rollback().await.expect("no more lock");
    let mut answers = answers(waiting).await;
    answers.push(late.await.expect("no panic"));
    let told = |at: usize| {
        let body = answers[at].json();
        (body["version"].clone(), body["metadata"]["n"].clone())
    };
    assert_eq!(told(7), (json!(2), json!(7)));
    assert_eq!(told(41), (json!(3), json!(3_000)));
    assert_eq!(told(8), (json!(2), json!(8)));
    assert_eq!(told(40), (json!(1), json!(1)));
    check_events(&taken.app.pool, taken.app.store_id).await;
    nothing_stays_open(&taken.app.pool).await;
    taken.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_document_waits_for_is_left_to_it_by_the_writes_of_other_resources() {
    let app = App::start_with(|_| {}, patient()).await;
    let gate = GATE.replace("insert on orders", "insert on customers");
    let made = sqlx::raw_sql(AssertSqlSafe(gate)).execute(&app.pool).await;
    made.expect("a gate");
    let target = Target::of(&app);
    let push = |path: &'static str, body: Value| {
        let target = target.clone();
        tokio::spawn(async move { target.push(path, &body).await })
    };
    let customer = |name: &str, at: usize, n: u64| {
        json!({
            "external_id": name, "phone": format!("+3361234{at:04}"),
            "first_name": format!("Ada {n}"),
        })
    };
    let of = |body: Value, key: &str| {
        let mut order = order(key, 0, 1);
        order["customer"] = body;
        order
    };
    let taker = push("customers", customer("taker-0", 1, 1));
    eventually("a customer is at the gate", || async {
        let at_gate = sqlx::query_scalar::<_, i32>(AT_GATE).fetch_all(&app.pool);
        (at_gate.await.expect("pg_stat_activity").len() == 1).then_some(())
    })
    .await;
    let items = [
        of(customer("taker-0", 1, 2), "a"),
        of(customer("other", 2, 2), "b"),
    ];
    let document = push("orders/bulk?atomic=true", json!({ "items": items }));
    let mut n = 2;
    let left = eventually(
        "the document has come, and its other customer waits",
        || {
            n += 1;
            let mut single = push("customers", customer("other", 2, n));
            let waited = tokio::time::sleep(Duration::from_secs(1));
            async move {
                tokio::select! {
                    _ = &mut single => None,
                    () = waited => Some(single),
                }
            }
        },
    )
    .await;
    assert!(!document.is_finished());
    sqlx::query("delete from gate")
        .execute(&app.pool)
        .await
        .expect("the gate opens");
    taker.await.expect("no panic").expect(201);
    document.await.expect("no panic").expect(200);
    let left = left.await.expect("no panic").expect(200).json();
    assert_eq!(left["first_name"], format!("Ada {n}"));
    check_events(&app.pool, app.store_id).await;
    app.stop().await;
}
