//! Automations through processes of their own: what only several of them, or the end of one, can
//! show.

mod evaluation;
mod kills;
mod thousand;

use keyfold::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::app::{client, tenant};
use crate::support::automations::on_change;
use crate::support::load::Target;
use crate::support::scale::eventually;

/// A store on a database, with a template; asked at this address.
async fn store(base: &str, pool: &PgPool) -> (Target, i64) {
    let (_, store_id, key) = tenant(pool, &Clock::system(), "Automations").await;
    let target = Target {
        base: base.to_owned(),
        store_id,
        key,
        client: client(),
    };
    let template = json!({ "name": "hello", "language": "en", "body": "Hello" });
    let made = target
        .push("message-templates", &template)
        .await
        .expect(201);
    (target, made.json()["id"].as_i64().expect("an integer"))
}

/// Saves an automation of a resource, with these members besides.
async fn automate(target: &Target, name: &str, resource: &str, template: i64, more: &Value) {
    let mut body = on_change(name, resource, template);
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    target.push("automations", &body).await.expect(201);
}

/// Waits until every event is evaluated, every run executed and every message handed over.
async fn at_rest(pool: &PgPool) {
    eventually("nothing waits any more", || async {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from outbox)
                or exists (select from automation_runs where status = 'scheduled')
                or exists (
                    select
                    from events e
                    join event_consumers c using (store_id)
                    where e.position is null or e.position > c.position
                )",
        )
        .fetch_one(pool)
        .await
        .expect("it can be asked");
        (!waits).then_some(())
    })
    .await;
}

async fn number(pool: &PgPool, statement: &'static str) -> i64 {
    let found = sqlx::query_scalar(statement).fetch_one(pool).await;
    found.expect("it can be counted")
}
