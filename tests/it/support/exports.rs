//! Stores that export to a receiver.

use std::time::Duration;

use http::Method;
use keyfold::config::{Config, SecretKey};
use keyfold::edge::Limits;
use keyfold::targets::Allowed;
use serde_json::{Value, json};

use super::app::{Answer, App};
use super::receiver::{Call, Receiver};
use super::scale::eventually;
use super::whatsapp::SECRET_KEY;

/// The settings that a service with exports to this machine needs.
pub fn configure(config: &mut Config) {
    config.secret_key = SecretKey::parse(SECRET_KEY);
    config.allow_private_targets = Allowed::parse("127.0.0.1").expect("an address");
}

/// A service that may export to this machine.
pub async fn start() -> App {
    App::start_with(configure, Limits::default()).await
}

/// An export of orders named `erp`, with these members besides.
pub fn export(receiver: &Receiver, more: &Value) -> Value {
    let mut export = json!({
        "external_id": "erp",
        "resources": ["orders"],
        "url": receiver.url("{resource}/{external_id}"),
        "method": "PUT",
    });
    for (name, value) in more.as_object().expect("members") {
        export[name] = value.clone();
    }
    export
}

/// An order.
pub fn order(external_id: &str, total_price: &str) -> Value {
    json!({
        "external_id": external_id,
        "placed_at": "2026-01-15T09:30:00Z",
        "total_price": total_price,
        "customer": { "external_id": "C-1", "phone": "+33612345678" },
    })
}

impl App {
    /// Saves an export that is new.
    pub async fn export(&self, receiver: &Receiver, more: &Value) -> Value {
        let saved = self.post("exports", &export(receiver, more)).await;
        saved.expect(201).json()
    }

    /// Pushes an order.
    pub async fn push(&self, external_id: &str, total_price: &str) {
        let answer = self.post("orders", &order(external_id, total_price)).await;
        assert!(answer.status.is_success(), "{}", answer.text);
    }

    /// Pushes so many orders at once.
    pub async fn push_many(&self, count: usize) {
        let orders: Vec<Value> = (0..count)
            .map(|n| order(&format!("A-{n:05}"), "10.00"))
            .collect();
        for items in orders.chunks(1_000) {
            let answer = self.post("orders/bulk", &json!({ "items": items })).await;
            assert_eq!(answer.expect(200).json()["summary"]["failed"], 0);
        }
    }

    /// A POST without a body.
    pub async fn ask(&self, rest: &str) -> Answer {
        self.send(Method::POST, &self.path(rest), &[], "").await
    }

    /// Begins a run of `erp`.
    pub async fn run(&self) -> Value {
        self.ask("exports/erp/runs").await.expect(202).json()
    }

    /// The run as it is now.
    pub async fn run_now(&self, run: &Value) -> Value {
        let id = run["run_id"].as_str().expect("an id");
        let answer = self.get(&format!("exports/erp/runs/{id}")).await;
        answer.expect(200).json()
    }

    /// Waits for a run's end; gives what it has come to.
    pub async fn completed(&self, run: &Value) -> Value {
        eventually("the run is completed", || async {
            let run = self.run_now(run).await;
            (run["status"] == "completed").then_some(run)
        })
        .await
    }

    /// Begins a run, waits for its end, and gives sent, skipped and failed.
    pub async fn run_through(&self) -> [i64; 3] {
        let run = self.run().await;
        counts(&self.completed(&run).await)
    }

    /// Waits until no event has to be evaluated, no delivery is due and nothing is in the outbox
    /// but what is due later.
    pub async fn exported(&self) {
        eventually("all is exported", || async {
            let open: bool = sqlx::query_scalar(
                "select exists (
                        select from events e join event_consumers c using (store_id)
                        where e.position is null
                    )
                    or exists (
                        select from event_consumers c
                        join event_feeds f using (store_id)
                        where c.position < f.last_position
                    )
                    or exists (select from outbox where due_at <= $1)
                    or exists (
                        select from export_deliveries d join exports e on e.id = d.export_id
                        where d.state = 'waiting' and d.due_at <= $1 and e.status = 'active'
                            and (e.held_until is null or e.held_until <= $1)
                    )",
            )
            .bind(self.clock.now())
            .fetch_one(&self.pool)
            .await
            .expect("asked");
            (!open).then_some(())
        })
        .await;
    }

    /// Waits until all events had their effects, and then as long as a call takes to come.
    pub async fn calls_have_come(&self) {
        self.evaluated().await;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }

    /// The entries of the log of `erp`.
    pub async fn log(&self) -> Vec<Value> {
        let page = self.get("exports/erp/log?limit=200").await.expect(200);
        page.json()["data"].as_array().expect("a list").clone()
    }

    /// What is still to be sent by `erp`.
    pub async fn deliveries(&self) -> Vec<Value> {
        let page = self.get("exports/erp/deliveries").await.expect(200);
        page.json()["data"].as_array().expect("a list").clone()
    }
}

/// Sent, skipped and failed of a run.
pub fn counts(run: &Value) -> [i64; 3] {
    ["sent", "skipped", "failed"].map(|name| run[name].as_i64().expect("a number"))
}

/// Waits until the receiver has had so many calls.
pub async fn calls(receiver: &Receiver, count: usize) -> Vec<Call> {
    eventually("the calls have come", || async {
        let calls = receiver.calls();
        (calls.len() >= count).then_some(calls)
    })
    .await
}
