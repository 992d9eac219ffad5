//! Two processes that evaluate the same store: each event once, each record's in order.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use super::{at_rest, automate, number, store};
use crate::support::app::client;
use crate::support::automations::checkout_of;
use crate::support::database;
use crate::support::load::Target;
use crate::support::process::Process;
use crate::support::scale::rounds;

const RECORDS: usize = 48;
const REST: Duration = Duration::from_millis(120);

/// How many events a process has evaluated.
async fn evaluated(process: &Process) -> i64 {
    let url = format!("{}/metrics", process.base);
    let answer = client().get(url).send().await.expect("it answers");
    let text = answer.text().await.expect("a text");
    let counts = text
        .lines()
        .filter(|line| line.starts_with("keyfold_events_evaluated_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok());
    counts.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_evaluate_each_event_once_and_each_records_in_order() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let processes = [Process::serve(&url), Process::serve(&url)];
    let (target, template) = store(&processes[0].base, &pool).await;
    for name in ["a", "b"] {
        let more = json!({ "reentry": "every_change" });
        automate(&target, name, "checkouts", template, &more).await;
    }
    let changes = rounds(20);
    let writers = (0..RECORDS).map(|record| {
        let target = Target {
            base: processes[record % 2].base.clone(),
            ..target.clone()
        };
        async move {
            let phone = format!("+336120{record:05}");
            for change in 0..changes {
                let mut body = checkout_of(&phone, &format!("B-{record}"), "abandoned");
                body["metadata"] = json!({ "n": change });
                let answer = target.push("checkouts", &body).await;
                assert!(answer.status.is_success(), "{}", answer.text);
                // About as often as somebody looks, or every change but the last would be skipped.
                tokio::time::sleep(REST).await;
            }
        }
    });
    join_all(writers).await;
    at_rest(&pool).await;
    let events = number(&pool, "select count(*) from events").await;
    let evaluated = [
        evaluated(&processes[0]).await,
        evaluated(&processes[1]).await,
    ];
    println!("{events} events, evaluated by the two: {evaluated:?}");
    assert_eq!(evaluated.iter().sum::<i64>(), events, "each of them once");
    // A run belongs to one change of the record that it is about, and it is sent.
    let strays = "select count(*)
        from automation_runs r
        left join events e
            on e.store_id = r.store_id and e.id = encode(r.occasion, 'hex')::uuid
                and e.record_id = r.record_id
        where e.id is null or r.status <> 'sent'";
    assert_eq!(number(&pool, strays).await, 0);
    // No record's last change is without one, of either automation.
    let last = "select count(*)
        from checkouts c
        cross join automations a
        where not exists (
            select
            from automation_runs r
            join events e on e.store_id = r.store_id and e.id = encode(r.occasion, 'hex')::uuid
            where r.record_id = c.id and r.automation_id = a.id and e.version = c.version
        )";
    assert_eq!(number(&pool, last).await, 0);
    let runs = number(&pool, "select count(*) from automation_runs").await;
    println!("{runs} runs");
    let last_ones = 2 * i64::try_from(RECORDS).expect("few");
    // How many more depends on how often somebody looks.
    assert!(runs >= last_ones, "{runs} runs");
    assert_eq!(number(&pool, "select count(*) from messages").await, runs);
    // Later changes were not evaluated before earlier ones.
    let turned = "select count(*)
        from (
            select
                e.version,
                lag(e.version) over (
                    partition by r.automation_id, r.record_id order by r.created_at, e.version
                ) as before,
                e.position,
                lag(e.position) over (
                    partition by r.automation_id, r.record_id order by r.created_at, e.version
                ) as position_before
            from automation_runs r
            join events e on e.store_id = r.store_id and e.id = encode(r.occasion, 'hex')::uuid
        ) runs
        where version <= before or position <= position_before";
    assert_eq!(number(&pool, turned).await, 0);
}
