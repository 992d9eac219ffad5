//! Automations over the API, and how a test knows that nothing more is to come.

use serde_json::{Value, json};

use super::app::{Answer, App};
use super::messaging::PHONE;
use super::scale::eventually;

/// Whether an event is still to be evaluated, or numbered.
const BEHIND: &str = "select exists (
    select
    from events e
    join event_consumers c using (store_id)
    where c.consumer = 'automations' and (e.position is null or e.position > c.position)
)";

/// Sends a template without variables whenever a record of this resource changes.
pub fn on_change(external_id: &str, resource: &str, template_id: i64) -> Value {
    json!({
        "external_id": external_id,
        "trigger": { "resource": resource },
        "reentry": "every_change",
        "action": { "send_template": { "template_id": template_id } },
    })
}

/// Sends a template without variables when its webhook is called.
pub fn on_call(external_id: &str, template_id: i64) -> Value {
    json!({
        "external_id": external_id,
        "trigger": { "webhook": true },
        "action": { "send_template": { "template_id": template_id } },
    })
}

/// A checkout of [`PHONE`].
pub fn checkout(external_id: &str, status: &str) -> Value {
    checkout_of(PHONE, external_id, status)
}

/// A checkout of somebody.
pub fn checkout_of(phone: &str, external_id: &str, status: &str) -> Value {
    json!({
        "external_id": external_id,
        "abandoned_at": "2026-01-15T09:30:00Z",
        "total_price": "49.90",
        "recovery_url": "https://shop.example.com/recover/1",
        "status": status,
        "customer": { "phone": phone, "first_name": "Ada" },
    })
}

/// What became of a run, in words: its status, why, and what of it.
pub fn outcome(run: &Value) -> String {
    let words = ["status", "reason", "detail"].map(|name| run[name].as_str());
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

impl App {
    /// A template without variables; gives its id.
    pub async fn greeting(&self) -> i64 {
        self.template("greeting", "Hello").await
    }

    /// Saves an automation; gives it as it is answered.
    pub async fn automate(&self, body: &Value) -> Value {
        let answer = self.post("automations", body).await;
        assert!(answer.status.is_success(), "{}", answer.text);
        answer.json()
    }

    /// Calls a webhook.
    pub async fn call(&self, automation: &Value, body: &Value) -> Answer {
        let id = automation["webhook_id"].as_str().expect("a webhook");
        let path = format!("/api/v1/automations/{id}");
        self.deliver(&path, body.to_string()).await
    }

    /// Waits until every event has been evaluated: what fired is a run by now, and nothing else fires.
    pub async fn evaluated(&self) {
        eventually("all events are evaluated", || async {
            let behind: bool = sqlx::query_scalar(BEHIND)
                .fetch_one(&self.pool)
                .await
                .expect("events can be read");
            (!behind).then_some(())
        })
        .await;
    }

    /// The same, and whatever is due by the app's clock is done.
    pub async fn at_rest(&self) {
        self.evaluated().await;
        eventually("nothing that is due is left", || async {
            let due: i64 = sqlx::query_scalar("select count(*) from outbox where due_at <= $1")
                .bind(self.clock.now())
                .fetch_one(&self.pool)
                .await
                .expect("the outbox can be read");
            (due == 0).then_some(())
        })
        .await;
    }

    /// All that a list of runs holds, page by page.
    pub async fn runs_at(&self, path: &str) -> Vec<Value> {
        let (mut runs, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}?limit=200{cursor}")).await;
            let page = page.expect(200).json();
            runs.extend(page["data"].as_array().expect("a list").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return runs,
            }
        }
    }

    /// The runs of an automation, oldest first.
    pub async fn runs(&self, automation: &str) -> Vec<Value> {
        self.runs_at(&format!("automations/{automation}/runs"))
            .await
    }

    /// What became of the runs of an automation, once nothing more is due.
    pub async fn outcomes(&self, automation: &str) -> Vec<String> {
        self.at_rest().await;
        self.runs(automation).await.iter().map(outcome).collect()
    }

    /// How many messages there are to each number, once nothing more is due; those to nobody any more
    /// to an empty one.
    pub async fn messages_by_number(&self) -> Vec<(String, i64)> {
        self.at_rest().await;
        sqlx::query_as(
            "select coalesce(recipient, ''), count(*) from messages group by 1 order by 1",
        )
        .fetch_all(&self.pool)
        .await
        .expect("messages can be read")
    }
}
