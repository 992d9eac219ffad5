//! One key at two processes at once: one message.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use keyfold::clock::Clock;
use serde_json::json;
use sqlx::PgPool;

use super::{answer_or_none, everybody_writes, person};
use crate::support::app::{client, tenant};
use crate::support::database;
use crate::support::meta::Meta;
use crate::support::process::Process;
use crate::support::scale::{eventually, rounds};
use crate::support::whatsapp::{connect, settings};

const CLIENTS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_sends_with_one_key_at_two_processes_one_message_leaves() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let (meta, clock) = (Meta::start().await, Clock::system());
    let (_, store_id, key) = tenant(&pool, &clock, "Races").await;
    connect(&pool, &clock, store_id).await;
    let settings = settings(&meta);
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let processes = [
        Process::serve_with(&url, &settings),
        Process::serve_with(&url, &settings),
    ];
    everybody_writes(&processes[0].base, store_id, &pool).await;
    let client = client();
    let mut ids = HashSet::new();
    for round in 0..rounds(10) {
        let body = json!({
            "store_id": store_id, "to": person(round), "type": "text", "text": { "body": "once" }
        })
        .to_string();
        let sends = (0..CLIENTS).map(async |n| {
            let base = &processes[n % 2].base;
            loop {
                let sent = client
                    .post(format!("{base}/api/v1/messages/send"))
                    .bearer_auth(&key)
                    .header("content-type", "application/json")
                    .header("idempotency-key", format!("round-{round}"))
                    .body(body.clone())
                    .send()
                    .await;
                let (status, answer) = answer_or_none(sent.expect("the service answers"))
                    .await
                    .expect("whole");
                if status == 201 {
                    return answer.to_string();
                }
                // In use: a retry succeeds.
                assert_eq!(
                    (status, &answer["code"]),
                    (409, &json!("idempotency_key_in_use"))
                );
            }
        });
        let answers: HashSet<String> = join_all(sends).await.into_iter().collect();
        assert_eq!(answers.len(), 1, "all answers are the same");
        ids.extend(answers);
    }
    assert_eq!(ids.len(), rounds(10));
    eventually("everything is sent", || async {
        let waiting: i64 = sqlx::query_scalar("select count(*) from outbox")
            .fetch_one(&pool)
            .await
            .expect("the outbox can be read");
        (waiting == 0).then_some(())
    })
    .await;
    let mut calls: HashMap<String, usize> = HashMap::new();
    for call in meta.calls() {
        *calls.entry(call.reference()).or_default() += 1;
    }
    assert_eq!(calls.len(), rounds(10), "one message a key");
    assert!(calls.values().all(|times| *times == 1), "each called once");
}
