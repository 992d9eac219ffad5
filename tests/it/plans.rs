//! Postgres keeps the plans of prepared statements. One that was made while a table was empty, or
//! known to be tiny, must still be right when it is not.

use std::collections::HashMap;
use std::time::Duration;

use http::Method;
use keyfold::config::Config;
use keyfold::edge::Limits;
use keyfold::engine::Resource as _;
use keyfold::outbox;
use keyfold::resources::orders::Order;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::app::App;
use crate::support::automations::{checkout_of, on_call, on_change};
use crate::support::exports::{configure, counts};
use crate::support::receiver::Receiver;
use crate::support::scale::eventually;

const ORDERS: u64 = 4_000;
const A_DOCUMENT: u64 = 50;
/// What look-ups by key read for one order: a few entries of each index. Walking the store would
/// read thousands.
const MOST_READ_PER_ORDER: i64 = 20;

const LISTED: u64 = 1_000;
const LOOKS: usize = 20;
/// A record, its customer and what authorises the caller.
const MOST_READ_PER_ID: i64 = 60;

const MESSAGES: u64 = 2_000;
/// The send and the delivery of one message look up some dozen rows by their keys.
const MOST_READ_PER_MESSAGE: i64 = 80;

/// Rows of one store that are due.
const BACKLOG: i32 = 20_000;
/// Two steps, and the leases of a hundred rows and one, looked for and then found by their keys.
const MOST_READ_PER_LOOK: i64 = 2_000;

const CARTS: u64 = 500;
/// Three runs are made, looked up by what they are about, executed and ended: some entries each. Walking
/// the runs of an automation would read a dozen for each at the least, the store's messages hundreds.
const MOST_READ_PER_CART: &[(&str, i64)] = &[
    ("automation_runs", 10),
    ("checkouts", 20),
    ("contacts", 60),
    ("events", 200),
    ("messages", 200),
];

const EXPORTED: usize = 4_000;
/// Walked, due, called for, and noted in three tables.
const MOST_READ_PER_EXPORTED: i64 = 60;
const TABLES_OF_EXPORTS: &[&str] = &[
    "export_deliveries",
    "export_log",
    "export_runs",
    "export_results",
];

#[tokio::test]
async fn plans_of_an_empty_store_do_not_walk_a_full_one() {
    let app = one_by_one().await;
    fill_and_check(app).await;
}

#[tokio::test]
async fn plans_of_a_store_that_is_known_to_be_tiny_do_not_walk_a_full_one() {
    let app = one_by_one().await;
    push(&app, 90_000_001..90_000_004).await;
    for table in ["orders", "customers", "events"] {
        let analyze = sqlx::AssertSqlSafe(format!("analyze {table}"));
        sqlx::query(analyze).execute(&app.pool).await.expect("ours");
    }
    fill_and_check(app).await;
}

#[tokio::test]
async fn plans_of_an_empty_outbox_do_not_walk_a_full_one() {
    let waiting = App::start_with(|config| config.works = false, Limits::default()).await;
    let template = json!({ "name": "n", "language": "en", "body": "Hello" });
    let made = waiting
        .post("message-templates", &template)
        .await
        .expect(201);
    send(&waiting, &made.json()["id"], 0..20).await;
    // The worker makes its plans while the queue holds next to nothing, and finds it full later.
    let app = App::start_on(
        waiting.database_url.clone(),
        |config| config.database_max_connections = 2,
        Limits::default(),
    )
    .await;
    drained(&app).await;
    let before = settled(&app.pool).await;
    send(&waiting, &made.json()["id"], 20..20 + MESSAGES).await;
    drained(&app).await;
    waiting.stop().await;
    let pool = app.pool.clone();
    app.stop().await;
    let read = settled(&pool).await - before;
    let per_message = read / i64::try_from(MESSAGES).expect("few");
    assert!(
        per_message <= MOST_READ_PER_MESSAGE,
        "{per_message} index entries and rows read per message"
    );
}

#[tokio::test]
async fn the_look_for_due_work_steps_over_a_backlog() {
    let app = App::start_with(|config| config.works = false, Limits::default()).await;
    let (pool, now) = (&app.state.pool, app.clock.now());
    let (flood, neighbour) = (app.store_id, app.store_id + 1);
    // Planned while the queue is empty.
    assert_eq!(outbox::due(pool, &["run"], now).await.expect("asked"), []);
    sqlx::query(
        "insert into outbox (store_id, id, bucket, kind, due_at, created_at)
        select $1, gen_random_uuid(), $2, 'run', $3, $3
        from generate_series(1, $4)",
    )
    .bind(flood)
    .bind(outbox::bucket(flood))
    .bind(now)
    .bind(BACKLOG)
    .execute(&app.pool)
    .await
    .expect("stored");
    let mut connection = pool.acquire().await.expect("a connection");
    outbox::append(
        &mut connection,
        neighbour,
        "run",
        &[app.clock.new_id()],
        now,
    )
    .await
    .expect("stored");
    drop(connection);
    let before = settled(&app.pool).await;
    let mut due = outbox::due(pool, &["run"], now).await.expect("asked");
    due.sort_unstable_by_key(|due| due.store_id);
    let stores: Vec<i64> = due.iter().map(|due| due.store_id).collect();
    assert_eq!(stores, [flood, neighbour]);
    for store_id in stores {
        let lease_id = app.clock.new_id();
        let leased = outbox::lease_due(pool, store_id, "run", 100, lease_id, now).await;
        assert!(!leased.expect("asked").is_empty());
    }
    let pool = app.pool.clone();
    app.stop().await;
    let read = settled(&pool).await - before;
    assert!(
        read <= MOST_READ_PER_LOOK,
        "{read} index entries and rows read"
    );
}

#[tokio::test]
async fn plans_of_a_store_without_runs_do_not_walk_a_full_one() {
    let waiting = App::start_with(|config| config.works = false, Limits::default()).await;
    let template = waiting.template("n", "Hello").await;
    for (name, reentry) in [
        ("once", json!("once_per_record")),
        ("cooldown", json!({ "cooldown_seconds": 3_600 })),
    ] {
        let mut body = on_change(name, "checkouts", template);
        body["reentry"] = reentry;
        waiting.automate(&body).await;
    }
    let call = waiting.automate(&on_call("call", template)).await;
    let carts = async |numbers: std::ops::Range<u64>| {
        let cart = |n: u64| checkout_of(&format!("+336{n:08}"), &format!("B-{n}"), "abandoned");
        let items: Vec<Value> = numbers.clone().map(cart).collect();
        waiting
            .post("checkouts/bulk", &json!({ "items": items }))
            .await
            .expect(200);
        for n in numbers {
            let phone = format!("+336{n:08}");
            let body = json!({ "phone_number": phone, "external_id": format!("call-{n}") });
            waiting.call(&call, &body).await.expect(200);
        }
    };
    carts(0..20).await;
    // Evaluated and executed while there is next to nothing, and later again.
    let app = App::start_on(
        waiting.database_url.clone(),
        |config| config.database_max_connections = 2,
        Limits::default(),
    )
    .await;
    evaluated(&app.pool, 20).await;
    let before = read_of(&app.pool).await;
    let mut at = 20;
    while at < 20 + CARTS {
        carts(at..at + A_DOCUMENT).await;
        at += A_DOCUMENT;
        evaluated(&app.pool, at).await;
    }
    waiting.stop().await;
    let pool = app.pool.clone();
    app.stop().await;
    settled(&pool).await;
    let read = read_of(&pool).await;
    let carts = i64::try_from(CARTS).expect("few");
    for (table, most) in MOST_READ_PER_CART {
        let per_cart = (read[*table] - before[*table]) / carts;
        assert!(
            per_cart <= *most,
            "{per_cart} index entries and rows of {table} read per checkout and call"
        );
    }
}

/// Sends a template to as many people, each under a key of its own.
#[tokio::test]
async fn plans_of_an_export_without_records_do_not_walk_a_full_one() {
    let few_connections = |config: &mut Config| {
        configure(config);
        config.database_max_connections = 2;
    };
    let app = App::start_with(few_connections, Limits::default()).await;
    let receiver = Receiver::start().await;
    app.push_many(20).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    assert_eq!(app.run_through().await, [20, 0, 0]);
    for table in TABLES_OF_EXPORTS {
        let analyze = sqlx::AssertSqlSafe(format!("analyze {table}"));
        sqlx::query(analyze).execute(&app.pool).await.expect("ours");
    }
    assert_eq!(app.run_through().await, [0, 20, 0]);
    app.push_many(EXPORTED).await;
    let before = read_of(&app.pool).await;
    let run = app.run().await;
    assert_eq!(run["total"], EXPORTED);
    let done = app.completed(&run).await;
    assert_eq!(counts(&done), [EXPORTED as i64 - 20, 20, 0]);
    let pool = app.pool.clone();
    app.stop().await;
    settled(&pool).await;
    let now = read_of(&pool).await;
    let of_exports = |read: &HashMap<String, i64>| -> i64 {
        TABLES_OF_EXPORTS.iter().map(|table| read[*table]).sum()
    };
    let read = of_exports(&now) - of_exports(&before);
    let per_record = read / EXPORTED as i64;
    println!("{per_record} entries and rows per exported record");
    assert!(
        per_record <= MOST_READ_PER_EXPORTED,
        "{per_record} index entries and rows read per exported record"
    );
}

async fn send(app: &App, template_id: &Value, numbers: impl Iterator<Item = u64>) {
    for n in numbers {
        let phone = format!("+336{n:08}");
        let body = json!({ "template_id": template_id, "phone_number": phone }).to_string();
        let key = format!("key-{n}");
        let headers = [("idempotency-key", key.as_str())];
        let answer = app
            .send(Method::POST, "/api/v1/templates", &headers, body)
            .await;
        answer.expect(201);
    }
}

async fn drained(app: &App) {
    while app.count("outbox").await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A service whose batches are few and on one connection.
async fn one_by_one() -> App {
    App::start_with(
        |config| config.database_max_connections = 2,
        Limits::default(),
    )
    .await
}

async fn push(app: &App, numbers: impl Iterator<Item = u64>) {
    let [example, _] = Order::examples();
    let items: Vec<Value> = numbers
        .map(|n| {
            let mut order = example.clone();
            order["external_id"] = json!(format!("o-{n}"));
            order["customer"]["external_id"] = json!(format!("c-{n}"));
            order["customer"]["phone"] = json!(format!("+336{n:08}"));
            order
        })
        .collect();
    let body = json!({ "items": items });
    let answer = app.post("orders/bulk", &body).await.expect(200);
    assert_eq!(answer.json()["summary"]["created"], items.len());
}

/// Pushes thousands of new orders and counts what Postgres reads for each.
async fn fill_and_check(app: App) {
    for document in 0..ORDERS / A_DOCUMENT {
        let numbers = document * A_DOCUMENT..(document + 1) * A_DOCUMENT;
        push(&app, numbers).await;
    }
    let pool = app.pool.clone();
    // A session reports what it read at its end at the latest.
    app.stop().await;
    let read = settled(&pool).await;
    let per_order = read / i64::try_from(ORDERS).expect("few");
    assert!(
        per_order <= MOST_READ_PER_ORDER,
        "{per_order} index entries and rows read per order"
    );
}

#[tokio::test]
async fn an_id_that_is_asked_for_is_looked_up_and_not_walked_to() {
    let app = one_by_one().await;
    for document in 0..LISTED / A_DOCUMENT {
        let numbers = document * A_DOCUMENT..(document + 1) * A_DOCUMENT;
        push(&app, numbers).await;
    }
    // The oldest: a walk that begins at it has the whole store before it.
    let oldest = |answer: Value| answer["data"][0]["id"].as_str().expect("an id").to_owned();
    let order = oldest(app.get("orders?limit=1").await.expect(200).json());
    let customer = oldest(app.get("customers?limit=1").await.expect(200).json());
    let lists = [
        format!("orders?id={order}"),
        format!("orders?id={order}&customer_external_id=c-0"),
        format!("customers?id={customer}"),
    ];
    let before = settled(&app.pool).await;
    for _ in 0..LOOKS {
        for list in &lists {
            let page = app.get(list).await.expect(200).json();
            assert_eq!(
                page["data"].as_array().map(Vec::len),
                Some(1),
                "{list}: {page}"
            );
        }
    }
    let pool = app.pool.clone();
    app.stop().await;
    let read = settled(&pool).await - before;
    let per_look = read / i64::try_from(LOOKS * lists.len()).expect("few");
    assert!(
        per_look <= MOST_READ_PER_ID,
        "{per_look} index entries and rows read per look"
    );
}

/// Waits until so many checkouts and calls have had their three runs, without a look at the tables that
/// are watched.
async fn evaluated(pool: &PgPool, carts: u64) {
    let runs = i64::try_from(3 * carts).expect("few");
    eventually("all is evaluated and done", || async {
        let done: bool = sqlx::query_scalar(
            "select not exists (select from outbox)
                and (
                    select n_tup_ins from pg_stat_user_tables where relname = 'automation_runs'
                ) >= $1",
        )
        .bind(runs)
        .fetch_one(pool)
        .await
        .expect("it can be asked");
        done.then_some(())
    })
    .await;
}

/// Index entries and table rows read so far, once the number stands still: sessions report it a
/// moment after the work.
async fn settled(pool: &PgPool) -> i64 {
    let mut last = -1;
    loop {
        let read: i64 = sqlx::query_scalar(
            "select (
                select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes
            )::bigint + (
                select coalesce(sum(seq_tup_read), 0) from pg_stat_user_tables
            )::bigint",
        )
        .fetch_one(pool)
        .await
        .expect("statistics");
        if read == last && read > 0 {
            return read;
        }
        last = read;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
}

/// The same, just now, of each table.
async fn read_of(pool: &PgPool) -> HashMap<String, i64> {
    let read: Vec<(String, i64)> = sqlx::query_as(
        "select
            t.relname::text,
            (t.seq_tup_read + coalesce(sum(i.idx_tup_read), 0))::bigint
        from pg_stat_user_tables t
        left join pg_stat_user_indexes i using (relid)
        group by t.relid, t.relname, t.seq_tup_read",
    )
    .fetch_all(pool)
    .await
    .expect("statistics");
    read.into_iter().collect()
}

#[tokio::test]
async fn no_statement_is_compiled_before_it_runs() {
    let app = App::start().await;
    app.automate(&on_change("a", "checkouts", app.greeting().await))
        .await;
    app.post("checkouts", &checkout_of("+33612345678", "B", "abandoned"))
        .await
        .expect(201);
    app.at_rest().await;
    // A statement that is compiled anew each time costs a hundred times as much as one that is not.
    let plans: Vec<(String, String)> = sqlx::query_as(
        "select name, setting from pg_settings where name in ('jit', 'plan_cache_mode') order by 1",
    )
    .fetch_all(&app.state.pool)
    .await
    .expect("settings");
    let expected = [("jit", "off"), ("plan_cache_mode", "force_generic_plan")];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(plans, expected);
    app.stop().await;
}
