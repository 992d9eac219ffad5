//! Lists that look at more than they show, and what is kept for how long.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::exports::start;
use crate::support::receiver::Receiver;

async fn sql(app: &App, statement: &'static str) {
    let done = sqlx::query(statement).execute(&app.pool).await;
    done.expect("our own statement");
}

async fn page(app: &App, path: &str) -> (usize, Value) {
    let page = app.get(path).await.expect(200).json();
    let shown = page["data"].as_array().expect("a list").len();
    (shown, page["next_cursor"].clone())
}

#[tokio::test]
async fn a_filtered_page_looks_at_10_000_rows_and_goes_on() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push("A", "1.00").await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    assert_eq!(app.run_through().await, [1, 0, 0]);
    // Their ids come before that of the record.
    sql(
        &app,
        "insert into export_results
            (store_id, run_id, record_id, resource, attempt, outcome, updated_at)
        select store_id, id, lpad(to_hex(n), 32, '0')::uuid, 'orders', 1, 'failed', now()
        from export_runs, generate_series(1, 10000) n",
    )
    .await;
    sql(
        &app,
        "insert into export_log (
            store_id, id, export_id, number, key, resource, record_id, content_sha256,
            response_status, sent_at
        )
        select store_id, lpad(to_hex(n), 32, '0')::uuid, id, n, n::text, 'orders', id, '',
            200, now() - interval '9 days'
        from exports, generate_series(1, 10000) n",
    )
    .await;
    sql(
        &app,
        "insert into export_deliveries (
            store_id, id, export_id, resource, record_id, state, wanted, due_at, created_at,
            updated_at
        )
        select store_id, lpad(to_hex(n), 32, '0')::uuid, id, 'orders',
            lpad(to_hex(n), 32, '0')::uuid, case when n > 10000 then 'dead' else 'waiting' end, 1,
            now() + interval '1 day', now(), now()
        from exports, generate_series(1, 10001) n",
    )
    .await;
    let runs = app.get("exports/erp/runs").await.expect(200).json();
    let run = runs["data"][0]["run_id"].as_str().expect("an id");
    for list in [
        format!("runs/{run}/results?outcome=sent"),
        "log?limit=10".to_owned(),
        "deliveries?state=dead".to_owned(),
    ] {
        let path = format!("exports/erp/{list}");
        let (shown, cursor) = page(&app, &path).await;
        assert_eq!(shown, 0, "{path}");
        let cursor = cursor.as_str().expect("there may be more");
        let (shown, cursor) = page(&app, &format!("{path}&cursor={cursor}")).await;
        assert_eq!((shown, cursor), (1, Value::Null), "{path}");
    }
    // One walk forgets them all, those of another resource but for these.
    sql(
        &app,
        "update export_log set resource = 'carts' where key = '7'",
    )
    .await;
    app.delete("exports/erp/log?resource=orders")
        .await
        .expect(204);
    assert_eq!(app.count("export_log").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn results_are_those_of_the_present_attempt() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(2).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    assert_eq!(app.run_through().await, [2, 0, 0]);
    sql(
        &app,
        "update export_results set attempt = 0
        where record_id = (select record_id from export_results limit 1)",
    )
    .await;
    let runs = app.get("exports/erp/runs").await.expect(200).json();
    let run = runs["data"][0]["run_id"].as_str().expect("an id");
    let (shown, _) = page(&app, &format!("exports/erp/runs/{run}/results")).await;
    assert_eq!(shown, 1);
    app.stop().await;
}

#[tokio::test]
async fn runs_are_kept_for_a_month_at_most() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push("A", "1.00").await;
    let long = json!({ "mode": "manual", "retention_days": 3_650 });
    app.export(&receiver, &long).await;
    assert_eq!(app.run_through().await, [1, 0, 0]);
    for (days, kept) in [(29, 1), (2, 0)] {
        app.clock.advance(TimeDelta::days(days));
        keyfold::maintenance::clean(&app.state).await;
        assert_eq!(app.count("export_runs").await, kept);
        assert_eq!(app.count("export_results").await, kept);
        assert_eq!(app.count("export_log").await, 1);
    }
    app.stop().await;
}
