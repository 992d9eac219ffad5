//! Erasures while runs about the person are made or executed.

use futures_util::future::{join, join_all};
use keyfold::automations::runs;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout_of, on_change};
use crate::support::held::Held;
use crate::support::kinds::kinds;
use crate::support::load::somebody_waits;
use crate::support::messaging::PHONE;
use crate::support::scale::{eventually, rounds};

/// Messages that name somebody who has no contact any more, or that are not told to be erased.
async fn mixed(app: &App) -> Vec<String> {
    sqlx::query_scalar(
        "select m::text
        from messages m
        left join contacts c on c.store_id = m.store_id and c.id = m.contact_id
        where (c.id is null) <> (m.recipient is null)
            or (c.id is null) <> (m.erased_at is not null)",
    )
    .fetch_all(&app.pool)
    .await
    .expect("messages")
}

/// Runs that still tell a number by its digest.
async fn digests(app: &App, phone: &str) -> i64 {
    sqlx::query_scalar("select count(*) from automation_runs where contact = $1 or once = $1")
        .bind(runs::contact(app.store_id, phone))
        .fetch_one(&app.pool)
        .await
        .expect("runs")
}

/// Whether every customer is erased.
async fn nobody_is_left(app: &App) -> bool {
    sqlx::query_scalar("select bool_and(phone is null) from customers")
        .fetch_one(&app.pool)
        .await
        .expect("customers")
}

async fn deadlocks(app: &App) -> i64 {
    sqlx::query_scalar("select deadlocks from pg_stat_database where datname = current_database()")
        .fetch_one(&app.pool)
        .await
        .expect("statistics")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_beside_runs_leaves_no_message_and_no_digest_of_the_person() {
    let app = App::start().await;
    let other = app.another().await;
    let id = app.greeting().await;
    for (name, reentry) in [
        ("every", json!("every_change")),
        ("cooldown", json!({ "cooldown_seconds": 3_600 })),
    ] {
        let mut body = on_change(name, "checkouts", id);
        body["reentry"] = reentry;
        app.automate(&body).await;
    }
    let mut phones = Vec::new();
    for round in 0..rounds(20) {
        let phone = format!("+3361000{round:04}");
        let carts: Vec<Value> = (0..10)
            .map(|n| checkout_of(&phone, &format!("B-{round}-{n}"), "abandoned"))
            .collect();
        let document = json!({ "items": carts });
        let app = &app;
        let erasing = async {
            let begun = || async {
                let made: i64 = sqlx::query_scalar(
                    "select count(*) from automation_runs where status = 'scheduled'",
                )
                .fetch_one(&app.pool)
                .await
                .expect("runs");
                (made > 0 || app.count("customers").await > 0).then_some(())
            };
            eventually("it has begun", begun).await;
            let path = format!("customers/{}", phone.replace('+', "%2B"));
            app.delete(&path).await.expect(204);
        };
        let pushing = async { app.post("checkouts/bulk", &document).await.expect(200) };
        join(pushing, erasing).await;
        // Whatever came after the erasure, too.
        app.at_rest().await;
        let path = format!("customers/{}", phone.replace('+', "%2B"));
        app.delete(&path).await.expect(204);
        phones.push(phone);
        assert_eq!(mixed(app).await, [""; 0], "round {round}");
    }
    app.at_rest().await;
    for phone in &phones {
        assert_eq!(digests(&app, phone).await, 0, "{phone}");
    }
    assert_eq!(app.count("contacts").await, 0);
    assert_eq!(deadlocks(&app).await, 0, "all lock in one order");
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_waits_for_the_run_that_is_being_executed_and_erases_its_message() {
    let app = App::start().await;
    app.automate(&on_change("a", "checkouts", app.greeting().await))
        .await;
    let held = Held::at_insert_into(&app, "messages").await;
    app.post("checkouts", &checkout_of(PHONE, "B", "abandoned"))
        .await
        .expect(201);
    Held::holds_one(&app).await;
    let erasing = app.delete("customers/%2B33612345678");
    let ending = async {
        eventually("the erasure waits", || async {
            somebody_waits(&app.pool).await.then_some(())
        })
        .await;
        held.end().await;
    };
    join(erasing, ending).await.0.expect(204);
    assert_eq!(app.outcomes("a").await, ["sent"]);
    assert_eq!(mixed(&app).await, [""; 0]);
    assert_eq!(app.count("contacts").await, 0);
    assert_eq!(digests(&app, PHONE).await, 0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_beside_the_evaluation_of_a_persons_change_leaves_no_digest() {
    let app = App::start().await;
    let mut body = on_change("a", "checkouts", app.greeting().await);
    body["delay_seconds"] = json!(600);
    app.automate(&body).await;
    let held = Held::at_insert_into(&app, "automation_runs").await;
    app.post("checkouts", &checkout_of(PHONE, "B", "abandoned"))
        .await
        .expect(201);
    Held::holds_one(&app).await;
    // The run is not to be seen yet. Whether the erasure waits for it or not, nothing is left.
    let erasing = app.delete("customers/%2B33612345678");
    let ending = async {
        eventually("the erasure waits or is done", || async {
            (nobody_is_left(&app).await || somebody_waits(&app.pool).await).then_some(())
        })
        .await;
        held.end().await;
    };
    let (erased, ()) = join(erasing, ending).await;
    erased.expect(204);
    app.evaluated().await;
    app.clock.advance(chrono::TimeDelta::seconds(600));
    app.at_rest().await;
    assert_eq!(app.count("messages").await, 0);
    assert_eq!(digests(&app, PHONE).await, 0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shipment_beside_the_erasure_of_its_recipient_sends_them_nothing_afterwards() {
    let app = App::start().await;
    app.automate(&on_change("a", "shipments", app.greeting().await))
        .await;
    let of = |path: &str| kinds().into_iter().find(|kind| kind.path == path);
    let (orders, shipments) = (
        of("orders").expect("known"),
        of("shipments").expect("known"),
    );
    let mut order = orders.first("O");
    order["customer"] = json!({ "external_id": "C", "phone": PHONE });
    app.post("orders", &order).await.expect(201);
    let held = Held::at_insert_into(&app, "messages").await;
    let mut body = shipments.first("S");
    body["order_external_id"] = json!("O");
    app.post("shipments", &body).await.expect(201);
    Held::holds_one(&app).await;
    let erasing = app.delete("customers/C");
    let ending = async {
        eventually("the erasure waits or is done", || async {
            (nobody_is_left(&app).await || somebody_waits(&app.pool).await).then_some(())
        })
        .await;
        held.end().await;
    };
    join(erasing, ending).await.0.expect(204);
    app.at_rest().await;
    assert_eq!(mixed(&app).await, [""; 0]);
    assert_eq!(app.count("contacts").await, 0, "they are not back");
    assert_eq!(digests(&app, PHONE).await, 0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_beside_calls_for_the_person_stands_in_nobodys_way() {
    let app = App::start().await;
    let body = crate::support::automations::on_call("call", app.greeting().await);
    let saved = app.automate(&body).await;
    for round in 0..rounds(20) {
        let phone = format!("+3361000{round:04}");
        let (app, saved) = (&app, &saved);
        let calls = (0..8).map(|n| {
            let body = json!({ "phone_number": phone, "external_id": format!("{round}-{n}") });
            async move { app.call(saved, &body).await.expect(200) }
        });
        let path = format!("customers/{}", phone.replace('+', "%2B"));
        let erasing = async { app.delete(&path).await.expect(204) };
        join(join_all(calls), erasing).await;
        app.at_rest().await;
        app.delete(&path).await.expect(204);
        assert_eq!(digests(app, &phone).await, 0);
        assert_eq!(mixed(app).await, [""; 0], "round {round}");
    }
    assert_eq!(deadlocks(&app).await, 0, "all lock in one order");
    app.stop().await;
}
