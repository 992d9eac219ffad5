//! A writer from elsewhere changes a record between our look at it and our write: nothing of ours is
//! stored by halves, and the write is made again on what is there now.

use keyfold::edge::Limits;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::app::{Answer, App};
use crate::support::kinds::{Kind, kinds};
use crate::support::load::{Target, nothing_stays_open, somebody_waits};
use crate::support::scale::{DEADLINE, eventually};

/// An app whose writes wait for a lock where they meet it.
async fn waiting_app() -> App {
    let limits = Limits {
        lock_wait: DEADLINE,
        ..Limits::default()
    };
    App::start_with(|_| {}, limits).await
}

/// Sends a write that waits for a row which somebody else holds, changes and lets go.
async fn while_changed(app: &App, change: &str, path: &str, body: Value) -> Answer {
    let mut other = app.pool.begin().await.expect("a transaction");
    let changed = sqlx::query(AssertSqlSafe(change.to_owned()))
        .execute(&mut *other)
        .await
        .expect("a change");
    assert_eq!(changed.rows_affected(), 1, "{change}");
    let (target, path) = (Target::of(app), path.to_owned());
    let ours = tokio::spawn(async move { target.push(&path, &body).await });
    eventually("our write waits for the row", || async {
        somebody_waits(&app.pool).await.then_some(())
    })
    .await;
    other.commit().await.expect("the change");
    ours.await.expect("no panic").expect(200)
}

/// The versions that the store's events tell of, by the singular of what changed.
async fn told(app: &App, kind: &str) -> Vec<i64> {
    let events = app.events().await;
    let of_kind = |event: &&Value| {
        let name = event["type"].as_str().expect("a type");
        name.split('.').next() == Some(kind)
    };
    let version = |event: &Value| event["version"].as_i64().expect("a number");
    events.iter().filter(of_kind).map(version).collect()
}

fn raise(table: &str) -> String {
    format!("update {table} set version = version + 1 where external_id is not null")
}

#[tokio::test]
async fn a_record_that_changes_meanwhile_is_looked_at_again() {
    for kind in kinds() {
        let app = waiting_app().await;
        app.post(kind.path, &kind.first("V")).await.expect(201);
        let answer = while_changed(&app, &raise(kind.path), kind.path, kind.second("V")).await;
        assert_eq!(
            (answer.outcome(), answer.header("etag")),
            ("updated", "\"3\""),
            "{}",
            kind.path
        );
        // The one in between was not ours to tell of.
        assert_eq!(told(&app, kind.singular).await, [1, 3], "{}", kind.path);
        nothing_stays_open(&app.pool).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_source_time_that_advances_meanwhile_makes_what_is_older_late() {
    for kind in kinds() {
        let app = waiting_app().await;
        let at = |mut body: Value, time: &str| {
            body["source_updated_at"] = json!(time);
            body
        };
        let first = at(kind.first("V"), "2026-03-01T00:00:00Z");
        app.post(kind.path, &first).await.expect(201);
        // A replay with a newer time advances it, and makes no version.
        let advance = format!(
            "update {} set source_updated_at = '2026-05-01T00:00:00Z' where external_id = 'V'",
            kind.path
        );
        let items = json!({ "items": [
            at(kind.second("V"), "2026-04-01T00:00:00Z"),
            at(kind.second("V"), "2026-06-01T00:00:00Z"),
        ]});
        let bulk = format!("{}/bulk", kind.path);
        let answer = while_changed(&app, &advance, &bulk, items).await.json();
        let outcomes: Vec<&Value> = answer["results"]
            .as_array()
            .expect("results")
            .iter()
            .map(|result| &result["outcome"])
            .collect();
        assert_eq!(outcomes, ["stale", "updated"], "{}", kind.path);
        assert_eq!(told(&app, kind.singular).await, [1, 2], "{}", kind.path);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_customer_that_changes_meanwhile_is_looked_at_again_and_the_order_with_it() {
    let carriers = kinds().into_iter().filter(|kind| kind.has_customer);
    for kind in carriers {
        let app = waiting_app().await;
        let (first, second) = (kind.first("V"), renamed(&kind));
        app.post(kind.path, &first).await.expect(201);
        let answer = while_changed(&app, &raise("customers"), kind.path, second).await;
        assert_eq!(
            (answer.outcome(), answer.header("etag")),
            ("updated", "\"2\""),
            "{}",
            kind.path
        );
        assert_eq!(answer.json()["customer"]["first_name"], "Renamed");
        assert_eq!(told(&app, kind.singular).await, [1, 2], "{}", kind.path);
        assert_eq!(told(&app, "customer").await, [1, 3], "{}", kind.path);
        nothing_stays_open(&app.pool).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_row_that_has_moved_since_it_was_read_is_looked_at_again() {
    for kind in kinds().into_iter().filter(|kind| kind.has_customer) {
        let app = waiting_app().await;
        app.post(kind.path, &kind.first("V")).await.expect(201);
        // Our write has read its row when it waits for the phone of a customer who is new.
        let mut other = app.pool.begin().await.expect("a transaction");
        sqlx::query("insert into customer_phones (store_id, phone) values ($1, '+33699999999')")
            .bind(app.store_id)
            .execute(&mut *other)
            .await
            .expect("a lock");
        let mut body = kind.second("V");
        body["customer"] = json!({ "external_id": "new", "phone": "+33699999999" });
        let (target, path) = (Target::of(&app), kind.path.to_owned());
        let ours = tokio::spawn(async move { target.push(&path, &body).await });
        eventually("our write waits for the phone", || async {
            somebody_waits(&app.pool).await.then_some(())
        })
        .await;
        let moves = format!("update {} set customer_digest = customer_digest", kind.path);
        let moved = sqlx::query(AssertSqlSafe(moves)).execute(&app.pool).await;
        assert_eq!(moved.expect("a move").rows_affected(), 1);
        other.rollback().await.expect("no more lock");
        let answer = ours.await.expect("no panic").expect(200);
        assert_eq!(
            (answer.outcome(), answer.header("etag")),
            ("updated", "\"2\"")
        );
        assert_eq!(answer.json()["customer"]["external_id"], "new");
        assert_eq!(told(&app, kind.singular).await, [1, 2], "{}", kind.path);
        nothing_stays_open(&app.pool).await;
        app.stop().await;
    }
}

/// The first example with news of its customer.
fn renamed(kind: &Kind) -> Value {
    let mut body = kind.first("V");
    body["customer"]["first_name"] = json!("Renamed");
    body
}
