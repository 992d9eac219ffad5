//! Connections to Postgres that break around a commit: the caller hears what really happened.

use std::sync::{Arc, Mutex};

use http::Method;
use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::database;
use crate::support::load::{Load, Target, nothing_stays_open, order};
use crate::support::proxy::{Fate, Proxy};
use crate::support::scale::rounds;

const BREAKS: [Fate; 3] = [Fate::Unheard, Fate::Unanswered, Fate::Unwatched];

/// What happens to the next commit.
type Next = Arc<Mutex<Option<Fate>>>;

/// An app whose next commit can be given a fate.
async fn app_with_fate() -> (App, Next) {
    let next = Next::default();
    let plan = Arc::clone(&next);
    let taken = move |_| {
        plan.lock()
            .expect("no panic")
            .take()
            .unwrap_or(Fate::Passes)
    };
    let proxy = Proxy::start(&database::fresh().await, taken).await;
    let app = App::start_on(proxy.url, |_| {}, Limits::default()).await;
    (app, next)
}

/// Sends a request whose first commit breaks; gives the outcomes that it was answered with.
async fn outcomes(app: &App, next: &Next, fate: Fate, rest: &str, body: &str) -> Vec<String> {
    *next.lock().expect("no panic") = Some(fate);
    let method = if rest.contains('/') && !rest.contains("bulk") {
        Method::PATCH
    } else {
        Method::POST
    };
    let kind = if rest.ends_with("all") {
        "application/x-ndjson"
    } else {
        "application/json"
    };
    let path = app.path(rest);
    let answer = app
        .send(method, &path, &[("content-type", kind)], body)
        .await;
    assert!(
        answer.status.is_success(),
        "{fate:?} {rest}: {}",
        answer.text
    );
    assert!(next.lock().expect("no panic").is_none(), "no commit broke");
    if !answer.outcome().is_empty() {
        return vec![answer.outcome().to_owned()];
    }
    let lines: Vec<Value> = answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let results = lines[0]["results"].as_array().unwrap_or(&lines);
    let outcome = |result: &Value| result["outcome"].as_str().map(str::to_owned);
    results.iter().filter_map(outcome).collect()
}

/// Each record with its version and the versions that its events tell of.
async fn records(app: &App) -> Vec<(String, i64, Vec<i64>)> {
    sqlx::query_as(
        "select r.external_id, r.version, array_agg(e.version order by e.version)
        from (
            select store_id, id, external_id, version from orders
            union all select store_id, id, external_id, version from checkouts
            union all select store_id, id, external_id, version from customers
            union all select store_id, id, external_id, version from shipments
        ) r
        left join events e on e.store_id = r.store_id and e.record_id = r.id
        where r.external_id is not null
        group by r.external_id, r.version
        order by r.external_id collate \"C\"",
    )
    .fetch_all(&app.pool)
    .await
    .expect("records")
}

/// Writes of each kind, each with this fate at its first commit.
async fn are_done_once(fate: Fate) {
    let checkout = json!({
        "external_id": "checkout",
        "abandoned_at": "2026-01-31T12:00:00Z",
        "total_price": "1",
        "customer": { "phone": "+33612340009" },
    });
    let customer = json!({ "external_id": "customer", "phone": "+33612340099" });
    let shipment = json!({ "external_id": "shipment", "order_external_id": "order" });
    let items = json!({ "items": [order("bulk-1", 1, 1), order("bulk-2", 2, 1)] });
    let lines = format!("{}\n{}\n", order("line-1", 1, 1), order("line-2", 3, 1));
    let writes = [
        ("orders", order("order", 1, 1).to_string(), vec!["created"]),
        ("orders", order("order", 1, 2).to_string(), vec!["updated"]),
        (
            "orders/order",
            json!({ "tags": ["late"] }).to_string(),
            vec!["updated"],
        ),
        ("checkouts", checkout.to_string(), vec!["created"]),
        ("customers", customer.to_string(), vec!["created"]),
        ("shipments", shipment.to_string(), vec!["created"]),
        ("orders/bulk", items.to_string(), vec!["created", "created"]),
        ("orders/bulk?results=all", lines, vec!["created", "created"]),
    ];
    let (app, next) = app_with_fate().await;
    for (rest, body, expected) in &writes {
        let found = outcomes(&app, &next, fate, rest, body).await;
        assert_eq!(&found, expected, "{fate:?} {rest}");
    }
    let once = |key: &str| (key.to_owned(), 1, vec![1]);
    let mut expected: Vec<_> = [
        "bulk-1", "bulk-2", "checkout", "customer", "line-1", "line-2", "shipment",
    ]
    .map(once)
    .to_vec();
    expected.insert(6, ("order".to_owned(), 3, vec![1, 2, 3]));
    assert_eq!(records(&app).await, expected, "{fate:?}");
    nothing_stays_open(&app.pool).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_commit_breaks_is_done_once_and_answered_as_if_nothing_had_been() {
    for fate in BREAKS {
        are_done_once(fate).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_commit_falls_silent_is_done_once_and_answered_as_if_nothing_had_been() {
    // Postgres has committed. Where it waits for the rest of a transaction that nobody ends, its locks
    // last longer than a caller waits: see `silence`.
    tokio::join!(are_done_once(Fate::Mute), are_done_once(Fate::HalfAnswered));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_each_key_is_created_once_however_its_commits_break() {
    let proxy = Proxy::start(&database::fresh().await, |n| match n % 9 {
        0 => Fate::Unanswered,
        3 => Fate::Unheard,
        6 => Fate::Unwatched,
        _ => Fate::Passes,
    })
    .await;
    let app = App::start_on(proxy.url.clone(), |_| {}, Limits::default()).await;
    let load = Load::start(&Target::of(&app), 8);
    load.proceed(rounds(300) as u64).await;
    let told = load.stop_and_check(&app.pool, app.store_id).await;
    assert!(told.refusals.is_empty(), "{told:?}");
    assert!(proxy.commits() > 9, "no commit broke");
    assert_eq!(
        i64::try_from(told.created),
        Ok(app.count("orders").await),
        "one 201 an order"
    );
    nothing_stays_open(&app.pool).await;
    app.stop().await;
}
