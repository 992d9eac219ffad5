//! A database that goes away, and workers that share what is to be done.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use keyfold::edge::Limits;
use serde_json::json;

use crate::support::app::App;
use crate::support::database::OwnServer;
use crate::support::messaging::{TEMPLATES, template_to};
use crate::support::process::keyfold;
use crate::support::scale::{eventually, rounds};

/// A `keyfold work` process; killed when dropped.
struct Worker(Child);

impl Worker {
    fn start(app: &App) -> Self {
        let child = keyfold()
            .arg("work")
            .env("DATABASE_URL", &app.database_url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("the binary starts"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn number(app: &App, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement)
        .fetch_one(&app.pool)
        .await
        .expect(statement)
}

/// Messages that are not delivered by exactly one way through `queued`, `sent` and `delivered`.
const ODD: &str = "select count(*)
    from messages
    where status <> 'delivered'
        or array(select step ->> 'status' from jsonb_array_elements(timeline) as step)
            <> array['queued', 'sent', 'delivered']";

/// Messages whose events are not one per version, numbered from 1.
const UNTOLD: &str = "select count(*)
    from messages m
    where array(
            select e.version
            from events e
            where e.store_id = m.store_id and e.record_id = m.id
            order by e.version
        ) <> array(select generate_series(1, m.version))";

/// Waits until nothing is left to do, and looks at what became of it.
async fn assert_drained(app: &App) {
    eventually("the queue drains", || async {
        (app.count("outbox").await == 0).then_some(())
    })
    .await;
    assert_eq!(number(app, ODD).await, 0, "not delivered once");
    assert_eq!(number(app, UNTOLD).await, 0, "an event per version");
}

/// Sends that many messages to as many people; all have to be accepted.
async fn backlog(app: &App, messages: usize) {
    let template = app.template("hello", "Hello {{n}}").await;
    const AT_ONCE: usize = 8;
    join_all((0..AT_ONCE).map(|first| async move {
        for n in (first..messages).step_by(AT_ONCE) {
            let phone = format!("+3361{:07}", n % 1_000);
            let variables = json!({ "n": n.to_string() });
            let body = template_to(&phone, template, &variables).to_string();
            app.deliver(TEMPLATES, body).await.expect(201);
        }
    }))
    .await;
}

async fn idle_app() -> App {
    let idle = |config: &mut keyfold::config::Config| config.works = false;
    App::start_with(idle, Limits::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_work_processes_share_a_backlog_and_each_message_is_sent_once() {
    let app = idle_app().await;
    let messages = rounds(1_000);
    backlog(&app, messages).await;
    let messages = i64::try_from(messages).expect("few");
    assert_eq!(app.count("outbox").await, messages);
    let queued = "select count(*) from messages where status = 'queued'";
    assert_eq!(number(&app, queued).await, messages, "nobody works yet");
    let _workers = [Worker::start(&app), Worker::start(&app)];
    assert_drained(&app).await;
    assert_eq!(app.count("messages").await, messages);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_services_share_what_comes_in_while_they_work() {
    let app = App::start().await;
    let other = app.another().await;
    let template = app.template("hello", "Hello {{n}}").await;
    let (services, messages) = ([&app, &other], rounds(400));
    join_all((0..8).map(|first| async move {
        for n in (first..messages).step_by(8) {
            let phone = format!("+3361{:07}", n % 50);
            let variables = json!({ "n": n.to_string() });
            let body = template_to(&phone, template, &variables).to_string();
            let key = format!("k-{n}");
            let service = services[n % 2];
            service.keyed(TEMPLATES, &key, body).await.expect(201);
        }
    }))
    .await;
    assert_drained(&app).await;
    let messages = i64::try_from(messages).expect("few");
    assert_eq!(app.count("messages").await, messages);
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_leaves_its_messages_to_another() {
    let app = idle_app().await;
    backlog(&app, rounds(300)).await;
    let worker = Worker::start(&app);
    eventually("it has begun", || async {
        let left = app.count("outbox").await;
        let leased = number(
            &app,
            "select count(*) from outbox where lease_until is not null",
        )
        .await;
        (leased > 0 || left == 0).then_some(())
    })
    .await;
    drop(worker);
    // Its leases run out by the clock of whoever comes next.
    let other = app.another().await;
    other.clock.advance(chrono::TimeDelta::minutes(2));
    assert_drained(&app).await;
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_nothing_is_accepted_and_afterwards_the_queue_drains() {
    let mut server = OwnServer::start("sends-outage").await;
    let app = App::start_on(server.url.clone(), |_| {}, Limits::default()).await;
    let template = app.template("hello", "Hello {{n}}").await;
    let stop = Arc::new(AtomicBool::new(false));
    let app = Arc::new(app);
    // Each caller insists on its messages, one after the other, each with a key of its own.
    let callers: Vec<_> = (0..6)
        .map(|caller| {
            let (app, stop) = (Arc::clone(&app), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut accepted = 0;
                while !stop.load(Ordering::Relaxed) {
                    let phone = format!("+3361000{:04}", caller * 10 + accepted % 10);
                    let variables = json!({ "n": format!("{caller}-{accepted}") });
                    let body = template_to(&phone, template, &variables).to_string();
                    let key = format!("k-{caller}-{accepted}");
                    eventually("the message is accepted", || async {
                        let answer = app.keyed(TEMPLATES, &key, body.as_str()).await;
                        if answer.status == 201 {
                            return Some(());
                        }
                        // In use: an attempt of before is still under way.
                        let code = answer.code();
                        let known = [
                            "database_unavailable",
                            "outcome_unknown",
                            "overloaded",
                            "idempotency_key_in_use",
                        ];
                        assert!(known.contains(&code.as_str()), "{}", answer.text);
                        assert!(!answer.header("retry-after").is_empty());
                        None
                    })
                    .await;
                    accepted += 1;
                }
                accepted
            })
        })
        .collect();
    let accepted = async |more: i64| {
        let wanted = app.count("messages").await + more;
        eventually("messages are accepted", || async {
            (app.count("messages").await >= wanted).then_some(())
        })
        .await;
    };
    for _ in 0..rounds(3) {
        accepted(20).await;
        server.stop();
        let body = template_to("+33612345678", template, &json!({"n": "away"})).to_string();
        let away = app.deliver(TEMPLATES, body).await;
        assert_eq!(away.status, 503, "{}", away.text);
        server.start_again();
        eventually("the database is there again", || async {
            let asked = sqlx::query_scalar::<_, i32>("select 1");
            asked.fetch_one(&app.pool).await.ok()
        })
        .await;
    }
    accepted(20).await;
    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for caller in callers {
        sent += i64::from(caller.await.expect("no caller died"));
    }
    // What a worker had in hand when the database went away waits until its lease runs out.
    app.clock.advance(chrono::TimeDelta::minutes(2));
    assert_drained(&app).await;
    let away: i64 = number(
        &app,
        "select count(*) from messages where content::text like '%away%'",
    )
    .await;
    assert_eq!(away, 0, "what was refused was not queued");
    assert_eq!(app.count("messages").await, sent, "one message a key");
    assert_eq!(app.count("idempotency_keys").await, sent);
    Arc::into_inner(app)
        .expect("nobody else has it")
        .stop()
        .await;
}
