//! A shop's orders: the whole file at once, the whole file again, and order by order from clients
//! who lose their connections. `KEYFOLD_TEST_ORDERS` names a real file.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;

use http::Method;
use rust_decimal::Decimal;
use serde_json::Value;

use crate::support::app::{App, tenant};
use crate::support::load::{Target, check_events};
use crate::support::orders::orders;
use crate::support::raw;

const CLIENTS: usize = 32;

/// Pushes the file as one stream; gives the summary.
async fn push_file(app: &App, file: &str) -> Value {
    let path = app.path("orders/bulk");
    let kind = [("content-type", "application/x-ndjson")];
    let answer = app.send(Method::POST, &path, &kind, file).await.expect(200);
    let last = answer.text.lines().last().expect("a last line");
    serde_json::from_str(last).expect("JSON")
}

/// Which row versions are stored: any write changes it, also one that writes the same again.
async fn row_versions(app: &App) -> Vec<String> {
    let mut found = Vec::new();
    for table in ["orders", "customers", "customer_phones", "events"] {
        let statement = format!(
            "select '{table} ' || count(*) || ' '
                || coalesce(md5(string_agg(ctid::text || xmin::text, ',' order by ctid)), '')
            from {table}"
        );
        let versions = sqlx::query_scalar(sqlx::AssertSqlSafe(statement));
        found.push(versions.fetch_one(&app.pool).await.expect(table));
    }
    found
}

/// All orders and customers of a store as the API answers them, without what differs from one
/// store to another, by key.
async fn content(target: &Target, resource: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let url = format!(
            "{}/api/v1/stores/{}/{resource}?limit=200{cursor}",
            target.base, target.store_id
        );
        let request = target.client.get(url).bearer_auth(&target.key);
        let response = request.send().await.expect("the service answers");
        let mut page: Value = response.json().await.expect("JSON");
        for record in page["data"].as_array_mut().expect("a list") {
            strip(record);
            found.push(record.to_string());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    found.sort();
    found
}

fn strip(record: &mut Value) {
    let members = record.as_object_mut().expect("an object");
    for of_the_store in ["id", "store_id", "created_at", "updated_at"] {
        members.remove(of_the_store);
    }
    if let Some(customer) = members
        .get_mut("customer")
        .filter(|customer| customer.is_object())
    {
        strip(customer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shop_pushed_twice_is_stored_once_and_exactly_whichever_way_it_is_pushed() {
    let app = App::start().await;
    let lines = orders(300);
    let count = lines.len();
    let file = lines.join("\n");

    let first = push_file(&app, &file).await;
    assert_eq!(first["complete"], true);
    assert_eq!(first["summary"]["created"], count);
    let before = row_versions(&app).await;
    let again = push_file(&app, &file).await;
    assert_eq!(again["complete"], true);
    assert_eq!(again["summary"]["unchanged"], count);
    assert_eq!(row_versions(&app).await, before, "a replay wrote something");
    check_events(&app.pool, app.store_id).await;

    let target = Target::of(&app);
    let stored = content(&target, "orders").await;
    let customers = content(&target, "customers").await;
    let parsed: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let read: Vec<Value> = stored
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(total(&read), total(&parsed));
    assert_eq!(customers.len(), people(&parsed).len());

    let (_, store_id, key) = tenant(&app.pool, &app.clock, "Retries").await;
    let other = Target {
        store_id,
        key,
        ..target
    };
    push_one_by_one(&other, Arc::new(lines)).await;
    assert!(
        content(&other, "orders").await == stored,
        "the orders differ"
    );
    assert!(
        content(&other, "customers").await == customers,
        "the customers differ"
    );
    check_events(&app.pool, store_id).await;
    app.stop().await;
}

fn total(orders: &[Value]) -> Decimal {
    orders
        .iter()
        .map(|order| {
            Decimal::from_str(order["total_price"].as_str().expect("text")).expect("money")
        })
        .sum()
}

/// External ids, and the phones of those who have none.
fn people(orders: &[Value]) -> BTreeSet<String> {
    orders
        .iter()
        .map(|order| &order["customer"])
        .map(|customer| {
            customer
                .get("external_id")
                .unwrap_or(&customer["phone"])
                .to_string()
        })
        .collect()
}

/// Every order twice, in any order, from many clients; one in ten hangs up before the answer and
/// sends again.
async fn push_one_by_one(target: &Target, lines: Arc<Vec<String>>) {
    let mut places: Vec<usize> = (0..lines.len()).chain(0..lines.len()).collect();
    for at in (1..places.len()).rev() {
        places.swap(at, rand::random_range(0..=at));
    }
    let mut clients = tokio::task::JoinSet::new();
    for part in places.chunks(places.len().div_ceil(CLIENTS)) {
        let (target, lines, part) = (target.clone(), Arc::clone(&lines), part.to_vec());
        clients.spawn(async move {
            for at in part {
                if rand::random_range(0..10) == 0 {
                    let request = raw::post(&target, "orders", &lines[at]);
                    drop(raw::send(&target, &request).await);
                }
                let order = serde_json::from_str(&lines[at]).expect("JSON");
                let answer = target.push("orders", &order).await;
                assert!(answer.status.is_success(), "{answer:?}");
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("every order is taken");
    }
}
