//! One order, a thousand times, at two processes: one event, one run, one message.

use std::collections::HashMap;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use sqlx::PgPool;

use super::{at_rest, automate, number, store};
use crate::support::database;
use crate::support::load::{Target, order};
use crate::support::process::Process;
use crate::support::scale::rounds;

const POSTS: usize = 1_000;
const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_posts_of_one_order_at_two_processes_send_one_message() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let processes = [Process::serve(&url), Process::serve(&url)];
    let (target, template) = store(&processes[0].base, &pool).await;
    // The one that would show any second event.
    let more = json!({ "delay_seconds": 0, "reentry": "every_change" });
    automate(&target, "a", "orders", template, &more).await;
    let targets = [0, 1].map(|n: usize| Target {
        base: processes[n].base.clone(),
        ..target.clone()
    });
    for round in 1..=rounds(1) {
        let body = order(&format!("O-{round}"), round, 1);
        let mut outcomes: HashMap<String, usize> = HashMap::new();
        let mut posts = stream::iter(0..POSTS)
            .map(|n| targets[n % 2].push("orders", &body))
            .buffer_unordered(AT_ONCE);
        while let Some(answer) = posts.next().await {
            assert!(answer.status.is_success(), "{}", answer.text);
            *outcomes.entry(answer.outcome().to_owned()).or_default() += 1;
        }
        let expected = [
            ("created".to_owned(), 1),
            ("unchanged".to_owned(), POSTS - 1),
        ];
        assert_eq!(outcomes, HashMap::from(expected));
        at_rest(&pool).await;
        let round = i64::try_from(round).expect("few");
        let events = "select count(*) from events where resource = 'orders'";
        assert_eq!(number(&pool, events).await, round, "events");
        let runs = "select count(*) from automation_runs where status = 'sent'";
        assert_eq!(number(&pool, runs).await, round, "runs");
        let all = "select count(*) from automation_runs";
        assert_eq!(number(&pool, all).await, round, "runs of any kind");
        let messages = "select count(*) from messages where status = 'delivered'";
        assert_eq!(number(&pool, messages).await, round, "messages");
        let all = "select count(*) from messages";
        assert_eq!(number(&pool, all).await, round, "messages of any kind");
    }
}
