//! Everybody locks what a batch writes in one order: customers, then rows, each sorted. Then nobody
//! waits for somebody who waits for him. Only luck shows a deadlock; here it is seen at what is held
//! while the first lock is waited for: nothing that comes later.

use keyfold::clock::Clock;
use keyfold::edge::Limits;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::app::{Answer, App};
use crate::support::kinds::{Kind, kinds};
use crate::support::load::{Target, nothing_stays_open, somebody_waits};
use crate::support::scale::{DEADLINE, eventually};

/// Enough that nobody begins with the right one by chance each time.
const RECORDS: usize = 12;

/// An app whose writes wait for a lock where they meet it.
async fn waiting_app() -> App {
    let limits = Limits {
        lock_wait: DEADLINE,
        ..Limits::default()
    };
    App::start_with(|_| {}, limits).await
}

/// What `at` makes of the numbers of all records, the last one first, as a body of bulk.
fn backwards(at: impl Fn(usize) -> Value) -> Value {
    let items: Vec<Value> = (0..RECORDS).rev().map(at).collect();
    json!({ "items": items })
}

/// A body under a key of its own, with a customer of its own if it carries one.
fn with_its_customer(kind: &Kind, mut body: Value, at: usize, first_name: &str) -> Value {
    if kind.has_customer {
        body["customer"] = json!({
            "external_id": format!("C{at:02}"), "phone": format!("+336100000{at:02}"),
            "first_name": first_name,
        });
    }
    body
}

async fn run(connection: &mut PgConnection, statement: String) -> sqlx::Result<u64> {
    let done = sqlx::query(AssertSqlSafe(statement)).execute(connection);
    Ok(done.await?.rows_affected())
}

/// How many rows of a table, but the first one, nobody holds.
async fn free(app: &App, table: &str) -> usize {
    let others = format!(
        "select count(*) from (
            select from {table} where external_id not like '%00' for update skip locked
        ) as free"
    );
    let free: i64 = sqlx::query_scalar(AssertSqlSafe(others))
        .fetch_one(&app.pool)
        .await
        .expect("a count");
    usize::try_from(free).expect("a count")
}

/// Pushes a batch while the first row of a table is held; gives what it was answered, after a look
/// at what it holds while it waits.
async fn while_the_first_is_held<T>(
    app: &App,
    hold: String,
    (path, body): (&str, Value),
    look: impl AsyncFnOnce() -> T,
) -> (T, Answer) {
    let mut other = app.pool.begin().await.expect("a transaction");
    assert_eq!(run(&mut other, hold).await.expect("a lock"), 1);
    let (target, path) = (Target::of(app), format!("{path}/bulk"));
    let ours = tokio::spawn(async move { target.push(&path, &body).await });
    eventually("our batch waits", || async {
        somebody_waits(&app.pool).await.then_some(())
    })
    .await;
    let seen = look().await;
    other.rollback().await.expect("no more lock");
    let answer = ours.await.expect("no panic").expect(200);
    assert_eq!(answer.json()["summary"]["failed"], 0, "{}", answer.text);
    nothing_stays_open(&app.pool).await;
    (seen, answer)
}

#[tokio::test]
async fn who_waits_for_the_first_row_holds_no_other_row() {
    for kind in kinds() {
        let app = waiting_app().await;
        let first = |at| with_its_customer(&kind, kind.first(&format!("K{at:02}")), at, "Ada");
        let second = |at| with_its_customer(&kind, kind.second(&format!("K{at:02}")), at, "Ada");
        for at in 0..RECORDS {
            app.post(kind.path, &first(at)).await.expect(201);
        }
        let hold = format!(
            "select from {} where external_id = 'K00' for update",
            kind.path
        );
        let pushed = (kind.path, backwards(second));
        let look = async || free(&app, kind.path).await;
        let (free, answer) = while_the_first_is_held(&app, hold, pushed, look).await;
        assert_eq!(free, RECORDS - 1, "{}", kind.path);
        assert_eq!(answer.json()["summary"]["updated"], RECORDS);
        app.stop().await;
    }
}

#[tokio::test]
async fn who_waits_for_the_first_customer_holds_no_other_one_and_no_row() {
    for kind in kinds().into_iter().filter(|kind| kind.has_customer) {
        let app = waiting_app().await;
        let named =
            |at: usize, name| with_its_customer(&kind, kind.first(&format!("K{at:02}")), at, name);
        for at in 0..RECORDS {
            app.post(kind.path, &named(at, "Ada")).await.expect(201);
        }
        let hold = "select from customers where external_id = 'C00' for update".to_owned();
        let pushed = (kind.path, backwards(|at| named(at, "Grace")));
        let look = async || (free(&app, "customers").await, free(&app, kind.path).await);
        let (free, answer) = while_the_first_is_held(&app, hold, pushed, look).await;
        assert_eq!(free, (RECORDS - 1, RECORDS - 1), "{}", kind.path);
        assert_eq!(answer.json()["summary"]["updated"], RECORDS);
        app.stop().await;
    }
}

#[tokio::test]
async fn who_waits_for_the_first_new_key_has_taken_no_other_one() {
    for kind in kinds() {
        let app = waiting_app().await;
        let first = |at| with_its_customer(&kind, kind.first(&format!("K{at:02}")), at, "Ada");
        app.post(kind.path, &kind.first("model")).await.expect(201);
        // Takes a key as another writer would.
        let take = |key: &str| {
            let (table, id) = (kind.path, Clock::system().new_id());
            format!(
                r#"insert into {table}
                select (jsonb_populate_record(row, '{{"external_id": "{key}", "id": "{id}"}}')).*
                from {table} row where external_id = 'model'"#
            )
        };
        let look = async || {
            for at in 1..RECORDS {
                let mut third = app.pool.begin().await.expect("a transaction");
                let wait = "set local lock_timeout = '50ms'".to_owned();
                run(&mut third, wait).await.expect("a setting");
                let taken = run(&mut third, take(&format!("K{at:02}"))).await;
                taken.unwrap_or_else(|error| panic!("{}, K{at:02}: {error}", kind.path));
                third.rollback().await.expect("nothing is left");
            }
        };
        let pushed = (kind.path, backwards(first));
        let ((), answer) = while_the_first_is_held(&app, take("K00"), pushed, look).await;
        assert_eq!(answer.json()["summary"]["created"], RECORDS);
        app.stop().await;
    }
}
