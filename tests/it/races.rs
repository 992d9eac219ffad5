//! Many writers through two processes on one database: what comes out is what some order of them,
//! one after another, would give.

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::support::app::{self, Answer, App};
use crate::support::process::Process;
use crate::support::scale::{eventually, rounds};

const CLIENTS: usize = 64;

/// Two servers on one database. The one inside this process only lends its tenant and is not asked
/// while they race.
struct Two {
    app: App,
    servers: [Process; 2],
    clients: Vec<reqwest::Client>,
}

impl Two {
    async fn start() -> Self {
        let app = App::start().await;
        let servers = [
            Process::serve(&app.database_url),
            Process::serve(&app.database_url),
        ];
        let clients = (0..CLIENTS).map(|_| app::client()).collect();
        Self {
            app,
            servers,
            clients,
        }
    }

    /// A request by one of the clients; half of them ask the one server, half the other.
    async fn send(&self, client: usize, method: Method, rest: &str, body: &Value) -> Answer {
        let client = client % CLIENTS;
        let base = &self.servers[client % 2].base;
        let request = self.clients[client]
            .request(method, format!("{base}{}", self.app.path(rest)))
            .bearer_auth(&self.app.key)
            .header("content-type", "application/json")
            .body(body.to_string());
        app::answer(request.send().await.expect("the server answers")).await
    }

    async fn post(&self, client: usize, rest: &str, body: &Value) -> Answer {
        self.send(client, Method::POST, rest, body).await
    }

    /// One row of one column.
    async fn number(&self, statement: &'static str) -> i64 {
        sqlx::query_scalar(statement)
            .fetch_one(&self.app.pool)
            .await
            .expect("the statement runs")
    }
}

fn statuses(answers: &[Answer]) -> (usize, usize) {
    let count = |status: u16| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    (count(201), count(200))
}

fn order(key: &str, customer: &Value) -> Value {
    json!({
        "external_id": key, "placed_at": "2026-01-01T00:00:00Z", "total_price": "10.00",
        "customer": customer,
    })
}

/// One row of events per version of each record, whatever the record.
const UNTOLD_VERSIONS: &str = "select count(*) from (
        select store_id, id, version from orders
        union all
        select store_id, id, version from customers
    ) as record
    where version <> (
        select count(distinct e.version) from events e
        where e.store_id = record.store_id and e.record_id = record.id
    )
    or version <> (
        select count(*) from events e
        where e.store_id = record.store_id and e.record_id = record.id
    )";

#[tokio::test]
async fn of_64_clients_with_one_new_order_one_makes_it() {
    let two = Two::start().await;
    for round in 0..rounds(5) {
        let key = format!("O{round}");
        let body = order(
            &key,
            &json!({"phone": format!("+3361000{round:04}"), "external_id": key}),
        );
        let answers = join_all((0..CLIENTS).map(|at| two.post(at, "orders", &body))).await;
        assert_eq!(statuses(&answers), (1, CLIENTS - 1), "round {round}");
        assert!(answers.iter().all(|answer| answer.text == answers[0].text));
        let records = two.app.count("orders").await;
        assert_eq!(
            (records, two.app.count("customers").await),
            (round as i64 + 1, round as i64 + 1)
        );
    }
    assert_eq!(two.app.count("events").await, 2 * rounds(5) as i64);
    two.app.stop().await;
}

#[tokio::test]
async fn of_64_clients_with_one_new_customer_half_by_phone_one_makes_it() {
    let two = Two::start().await;
    for round in 0..rounds(5) {
        let phone = format!("+3361000{round:04}");
        let bare = json!({ "phone": phone });
        let named = json!({"phone": phone, "external_id": format!("C{round}")});
        // Both halves on both servers.
        let body = |at: usize| {
            if (at / 2).is_multiple_of(2) {
                &bare
            } else {
                &named
            }
        };
        let answers = join_all((0..CLIENTS).map(|at| two.post(at, "customers", body(at)))).await;
        assert_eq!(statuses(&answers), (1, CLIENTS - 1), "round {round}");
        let ids: std::collections::BTreeSet<String> = answers
            .iter()
            .map(|answer| answer.json()["id"].to_string())
            .collect();
        assert_eq!(ids.len(), 1, "one record, not two");
        assert_eq!(two.app.count("customers").await, round as i64 + 1);
    }
    let unnamed = two
        .number("select count(*) from customers where external_id is null")
        .await;
    assert_eq!((unnamed, two.number(UNTOLD_VERSIONS).await), (0, 0));
    two.app.stop().await;
}

#[tokio::test]
async fn orders_that_carry_one_new_customer_in_both_forms_make_one_record_of_it() {
    let two = Two::start().await;
    for round in 0..rounds(5) {
        let phone = format!("+3361000{round:04}");
        let bare = json!({ "phone": phone });
        let named = json!({"phone": phone, "external_id": format!("C{round}")});
        let bodies: Vec<Value> = (0..CLIENTS)
            .map(|at| {
                order(
                    &format!("O{round}-{at}"),
                    if (at / 2).is_multiple_of(2) {
                        &bare
                    } else {
                        &named
                    },
                )
            })
            .collect();
        let answers = join_all((0..CLIENTS).map(|at| two.post(at, "orders", &bodies[at]))).await;
        assert_eq!(statuses(&answers), (CLIENTS, 0), "round {round}");
        assert_eq!(two.app.count("customers").await, round as i64 + 1);
    }
    let strangers = two
        .number(
            "select count(*) from orders o
            where not exists (
                select from customers c where c.store_id = o.store_id and c.id = o.customer_id
            )",
        )
        .await;
    assert_eq!((strangers, two.number(UNTOLD_VERSIONS).await), (0, 0));
    two.app.stop().await;
}

#[tokio::test]
async fn documents_over_the_same_people_in_any_order_all_succeed() {
    let two = Two::start().await;
    for round in 0..rounds(5) {
        let item = |at: usize, client: usize| {
            let person =
                json!({"phone": format!("+3361{round:03}{at:04}"), "orders_count": client});
            let named = crate::support::kinds::keyed(&person, &format!("C{round}-{at}"));
            order(
                &format!("O{round}-{at}"),
                if (at + client).is_multiple_of(3) {
                    &named
                } else {
                    &person
                },
            )
        };
        let documents: Vec<Value> = (0..12)
            .map(|client| {
                let mut items: Vec<Value> = (0..30).map(|at| item(at, client)).collect();
                let turn = client * 7 % 30;
                items.rotate_left(turn);
                json!({ "items": items })
            })
            .collect();
        let posts = documents.iter().enumerate();
        let answers = join_all(posts.map(|(at, body)| two.post(at, "orders/bulk", body))).await;
        let mut created = 0;
        for answer in answers {
            let answer = answer.expect(200).json();
            assert_eq!(answer["summary"]["failed"], 0, "{answer}");
            created += answer["summary"]["created"].as_u64().expect("a number");
        }
        assert_eq!(created, 30, "round {round}");
    }
    let people = two.app.count("customers").await;
    assert_eq!(
        (people, two.number(UNTOLD_VERSIONS).await),
        (30 * rounds(5) as i64, 0)
    );
    two.app.stop().await;
}

#[tokio::test]
async fn orders_and_the_erasure_of_their_customer_at_once_leave_no_half_erased_one() {
    let two = Two::start().await;
    for round in 0..rounds(5) {
        let key = format!("C{round}");
        let carried = json!({"phone": format!("+3361000{round:04}"), "external_id": key, "first_name": "Canary"});
        two.post(0, "customers", &carried).await.expect(201);
        let delete = format!("customers/{key}");
        let nothing = Value::Null;
        let answers = join_all((0..CLIENTS).map(|at| {
            let two = &two;
            let (key, delete, carried, nothing) = (&key, &delete, &carried, &nothing);
            async move {
                match at % 8 {
                    7 => two.send(at, Method::DELETE, delete, nothing).await,
                    6 => two.post(at, "customers", carried).await,
                    // New orders, and changes of a few that others write as well.
                    _ => {
                        let which = if at % 2 == 0 { at } else { at % 3 };
                        let mut body = order(&format!("{key}-{which}"), carried);
                        body["tags"] = json!([at.to_string()]);
                        two.post(at, "orders", &body).await
                    }
                }
            }
        }))
        .await;
        for answer in &answers {
            assert!(
                answer.status.is_success(),
                "{} {}",
                answer.status,
                answer.text
            );
        }
    }
    // As in any order of these writes: an order of an erased customer has lost its digest.
    let half_erased = two
        .number(
            "select count(*) from orders o
            join customers c on c.store_id = o.store_id and c.id = o.customer_id
            where c.erased_at is not null and o.customer_digest is not null",
        )
        .await;
    assert_eq!(half_erased, 0);
    let doubled = two
        .number(
            "select count(*) from (
                select phone from customers where phone is not null group by phone having count(*) > 1
            ) as phones",
        )
        .await;
    assert_eq!((doubled, two.number(UNTOLD_VERSIONS).await), (0, 0));
    for customer in two.app.get("customers?limit=200").await.json()["data"]
        .as_array()
        .expect("a list")
    {
        assert_eq!(customer["first_name"], "Canary");
    }
    two.app.stop().await;
}

/// Everybody locks what it writes in one order, so nobody waits for somebody who waits for it. Postgres
/// would resolve that, after a second, and the answers would be right all the same.
#[tokio::test]
async fn the_same_records_written_in_opposite_orders_block_nobody_for_good() {
    let two = Two::start().await;
    let item = |at: usize, round: usize| {
        let customer = json!({
            "external_id": format!("C{at}"), "phone": format!("+3361000{at:04}"),
            "orders_count": round,
        });
        order(&format!("O{at}"), &customer)
    };
    for round in 0..6 * rounds(5) {
        let forth: Vec<Value> = (0..100).map(|at| item(at, 2 * round)).collect();
        let back: Vec<Value> = (0..100).rev().map(|at| item(at, 2 * round + 1)).collect();
        let bodies = [json!({ "items": forth }), json!({ "items": back })];
        let posts = (0..12).map(|client| two.post(client, "orders/bulk", &bodies[client % 2]));
        for answer in join_all(posts).await {
            let answer = answer.expect(200).json();
            assert_eq!(answer["summary"]["failed"], 0, "{answer}");
        }
    }
    assert_eq!(two.number(UNTOLD_VERSIONS).await, 0);
    let Two { app, servers, .. } = two;
    let sessions = async || -> i64 {
        let count = "select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'keyfold'";
        let count = sqlx::query_scalar(count).fetch_one(&app.pool).await;
        count.expect("pg_stat_activity")
    };
    // Sessions tell of their deadlocks when they end; those of the lanes are two of each server.
    let before = sessions().await;
    drop(servers);
    eventually("the servers' sessions end", || async {
        (sessions().await <= before - 4).then_some(())
    })
    .await;
    let deadlocks: i64 = sqlx::query_scalar(
        "select deadlocks from pg_stat_database where datname = current_database()",
    )
    .fetch_one(&app.pool)
    .await
    .expect("pg_stat_database");
    assert_eq!(deadlocks, 0);
    app.stop().await;
}
