//! Postgres keeps the plans of prepared statements. One that was made while a table was empty must
//! still be right when it is not.

use std::time::Duration;

use keyfold::edge::Limits;
use keyfold::engine::Resource as _;
use keyfold::resources::orders::Order;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::app::App;

const ORDERS: u64 = 4_000;
const A_DOCUMENT: u64 = 50;
/// What look-ups by key read for one order: a few entries of each index. Walking the store would
/// read thousands.
const MOST_READ_PER_ORDER: i64 = 250;

#[tokio::test]
async fn plans_of_an_empty_store_do_not_walk_a_full_one() {
    let app = App::start_with(
        |config| config.database_max_connections = 2,
        Limits::default(),
    )
    .await;
    let [example, _] = Order::examples();
    for document in 0..ORDERS / A_DOCUMENT {
        let items: Vec<Value> = (0..A_DOCUMENT)
            .map(|at| {
                let n = document * A_DOCUMENT + at;
                let mut order = example.clone();
                order["external_id"] = json!(format!("o-{n}"));
                order["customer"]["external_id"] = json!(format!("c-{n}"));
                order["customer"]["phone"] = json!(format!("+336{n:08}"));
                order
            })
            .collect();
        let answer = app
            .post("orders/bulk", &json!({ "items": items }))
            .await
            .expect(200);
        assert_eq!(answer.json()["summary"]["created"], A_DOCUMENT);
    }
    let read = settled(&app.pool).await;
    let per_order = read / i64::try_from(ORDERS).expect("few");
    assert!(
        per_order <= MOST_READ_PER_ORDER,
        "{per_order} index entries and rows read per order"
    );
    app.stop().await;
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
