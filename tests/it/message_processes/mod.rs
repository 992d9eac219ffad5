//! Messages through processes of their own: what only several of them, or the end of one, can show.

mod backlog;
mod kills;
mod races;

use keyfold::clock::Clock;
use serde_json::Value;
use sqlx::PgPool;

use crate::support::app::{answer, client};
use crate::support::scale::eventually;
use crate::support::webhooks::{self, APP_SECRET, From, SIGNATURE};
use crate::support::whatsapp::number_of;

/// People who wrote, and get the messages in turn: none of them more than the pace allows.
const PEOPLE: usize = 600;

fn person(n: usize) -> String {
    format!("+3361200{:04}", n % PEOPLE)
}

/// An answer, unless it was cut.
async fn answer_or_none(response: reqwest::Response) -> Option<(u16, Value)> {
    let status = response.status().as_u16();
    let bytes = response.bytes().await.ok()?;
    Some((status, serde_json::from_slice(&bytes).ok()?))
}

/// Tells the service what the provider knows.
async fn tell(base: &str, values: &[Value]) {
    let body = webhooks::event(values).to_string();
    let sent = client()
        .post(format!("{base}{}", webhooks::PATH))
        .header("content-type", "application/json")
        .header(SIGNATURE, webhooks::signature(APP_SECRET, body.as_bytes()))
        .body(body)
        .send()
        .await;
    let told = answer(sent.expect("the service answers")).await;
    assert_eq!(told.status, 200, "{}", told.text);
}

/// Has everybody write to a store, so that it may answer them for a day.
async fn everybody_writes(base: &str, store_id: i64, pool: &PgPool) {
    let (number, now) = (number_of(store_id), Clock::system().now().timestamp());
    let written: Vec<Value> = (0..PEOPLE)
        .map(|n| {
            let phone = person(n);
            From::phone(&phone).writes(&number, &format!("wamid.in.{n}"), "Hello", now)
        })
        .collect();
    tell(base, &written).await;
    eventually("the events are looked at", || async {
        let heard: i64 = sqlx::query_scalar("select count(*) from contacts")
            .fetch_one(pool)
            .await
            .expect("contacts can be read");
        (heard == i64::try_from(PEOPLE).expect("few")).then_some(())
    })
    .await;
}
