//! Calls of a webhook: safe to repeat, since an occasion has one run.

use std::collections::HashSet;

use chrono::TimeDelta;
use futures_util::future::{join, join_all};
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::on_call;
use crate::support::held::Held;
use crate::support::messaging::PHONE;
use crate::support::rows::snapshot;
use crate::support::scale::eventually;

const GRACE: &str = "+33612345679";

/// A call for somebody; without an occasion if it is empty.
fn for_whom(phone: &str, occasion: &str) -> Value {
    let mut body = json!({ "phone_number": phone });
    if !occasion.is_empty() {
        body["external_id"] = json!(occasion);
    }
    body
}

async fn automate(app: &App, reentry: Value) -> Value {
    let mut body = on_call("call", app.greeting().await);
    body["reentry"] = reentry;
    app.automate(&body).await
}

#[tokio::test]
async fn a_call_sends_its_message_and_says_which_run_it_is() {
    let app = App::start().await;
    let saved = automate(&app, json!("every_change")).await;
    let called = app.call(&saved, &for_whom(PHONE, "x")).await.expect(200);
    let run_id = called.json()["run_id"].clone();
    assert_eq!(
        called.json(),
        json!({ "triggered": true, "run_id": run_id })
    );
    assert_eq!(app.outcomes("call").await, ["sent"]);
    assert_eq!(app.runs("call").await[0]["run_id"], run_id);
    assert_eq!(app.messages_by_number().await, [(PHONE.to_owned(), 1)]);
    app.stop().await;
}

#[tokio::test]
async fn a_repeated_occasion_gets_the_same_answer_whatever_became_of_it() {
    let app = App::start().await;
    let saved = automate(&app, json!("once_per_record")).await;
    let first = app.call(&saved, &for_whom(PHONE, "x")).await.expect(200);
    assert_eq!(first.json()["triggered"], true);
    app.at_rest().await;
    let second = app.call(&saved, &for_whom(PHONE, "y")).await.expect(200);
    let reentry = json!({ "triggered": false, "reason": "reentry" });
    assert_eq!(second.json(), reentry);
    let before = snapshot(&app.pool).await;
    for _ in 0..3 {
        let again = app.call(&saved, &for_whom(PHONE, "x")).await.expect(200);
        assert_eq!(again.text, first.text);
        let again = app.call(&saved, &for_whom(PHONE, "y")).await.expect(200);
        assert_eq!(again.text, second.text);
        // Whoever it names by now.
        let other = app.call(&saved, &for_whom(GRACE, "x")).await.expect(200);
        assert_eq!(other.text, first.text);
    }
    assert_eq!(snapshot(&app.pool).await, before, "nothing is written");
    assert_eq!(app.outcomes("call").await, ["sent", "skipped reentry"]);
    app.stop().await;
}

#[tokio::test]
async fn without_an_occasion_every_call_is_one() {
    let app = App::start().await;
    let saved = automate(&app, json!("every_change")).await;
    let mut runs = HashSet::new();
    for _ in 0..3 {
        let called = app.call(&saved, &for_whom(PHONE, "")).await.expect(200);
        runs.insert(called.json()["run_id"].to_string());
    }
    assert_eq!(runs.len(), 3);
    assert_eq!(app.outcomes("call").await, ["sent"; 3]);
    app.stop().await;
}

#[tokio::test]
async fn reentry_of_a_webhook_is_per_contact() {
    let app = App::start().await;
    let once = automate(&app, json!("once_per_record")).await;
    let mut body = on_call("cooldown", app.template("again", "Again").await);
    body["reentry"] = json!({ "cooldown_seconds": 3_600 });
    let cooldown = app.automate(&body).await;
    let triggered = async |automation: &Value, phone: &str| {
        let called = app.call(automation, &for_whom(phone, "")).await.expect(200);
        called.json()["triggered"].clone()
    };
    for automation in [&once, &cooldown] {
        assert_eq!(triggered(automation, PHONE).await, true);
        assert_eq!(triggered(automation, PHONE).await, false);
        assert_eq!(triggered(automation, "+33 6 12 34 56 78").await, false);
        assert_eq!(triggered(automation, GRACE).await, true);
    }
    app.clock.advance(TimeDelta::seconds(3_600));
    assert_eq!(triggered(&once, PHONE).await, false);
    assert_eq!(triggered(&cooldown, PHONE).await, true);
    assert_eq!(triggered(&cooldown, PHONE).await, false);
    app.at_rest().await;
    // Opted out: nothing was sent, so a later call has its chance.
    let third = "+33612345670";
    app.hear_from(third, "STOP").await;
    assert_eq!(triggered(&once, third).await, true);
    app.at_rest().await;
    app.hear_from(third, "START").await;
    assert_eq!(triggered(&once, third).await, true);
    app.at_rest().await;
    assert_eq!(triggered(&once, third).await, false);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_calls_at_once_for_one_occasion_or_one_contact_one_runs() {
    let app = App::start().await;
    let other = app.another().await;
    let every = automate(&app, json!("every_change")).await;
    let mut body = on_call("once", app.template("once", "Once").await);
    let once = app.automate(&body).await;
    body["external_id"] = json!("cooldown");
    body["reentry"] = json!({ "cooldown_seconds": 3_600 });
    let cooldown = app.automate(&body).await;
    let all = async |automation: &Value, occasion: &dyn Fn(usize) -> String| {
        let calls = (0..64).map(|n| {
            let (app, body) = (
                if n % 2 == 0 { &app } else { &other },
                for_whom(PHONE, &occasion(n)),
            );
            async move { app.call(automation, &body).await.expect(200).json() }
        });
        join_all(calls).await
    };
    // One occasion: all are told the same.
    let answers = all(&every, &|_| "x".to_owned()).await;
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    assert_eq!(answers[0]["triggered"], true);
    assert_eq!(app.outcomes("call").await, ["sent"]);
    // One contact: one is told that it runs.
    for (automation, name) in [(&once, "once"), (&cooldown, "cooldown")] {
        for (named, runs) in [(true, 1), (false, 0)] {
            let occasion = |n: usize| {
                if named {
                    format!("o-{n}")
                } else {
                    String::new()
                }
            };
            let answers = all(automation, &occasion).await;
            let triggered = answers.iter().filter(|answer| answer["triggered"] == true);
            assert_eq!(triggered.count(), runs, "{name}");
            let refused = json!({ "triggered": false, "reason": "reentry" });
            let refused = answers.iter().filter(|answer| **answer == refused).count();
            assert_eq!(refused, 64 - runs, "{name}");
        }
        let outcomes = app.outcomes(name).await;
        let sent = outcomes.iter().filter(|outcome| *outcome == "sent");
        assert_eq!(sent.count(), 1, "{name}");
    }
    assert_eq!(app.messages_by_number().await, [(PHONE.to_owned(), 3)]);
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_come_while_the_first_is_under_way_wait_for_what_it_comes_to() {
    let cooldown = json!({ "cooldown_seconds": 3_600 });
    for (reentry, named) in [
        (json!("every_change"), false),
        (json!("once_per_record"), true),
        (cooldown, true),
    ] {
        let app = App::start().await;
        let saved = automate(&app, reentry.clone()).await;
        let held = Held::at_insert_into(&app, "automation_runs").await;
        let calls = join_all((0..8).map(|n| {
            let occasion = if named {
                format!("o-{n}")
            } else {
                "x".to_owned()
            };
            let (app, saved, body) = (&app, &saved, for_whom(PHONE, &occasion));
            async move { app.call(saved, &body).await.expect(200).json() }
        }));
        let ending = async {
            Held::holds_one(&app).await;
            eventually("others are under way", || async {
                let count: i64 = sqlx::query_scalar(
                    "select count(*)
                    from pg_stat_activity
                    where datname = current_database()
                        and (wait_event = 'PgSleep' or wait_event_type = 'Lock')",
                )
                .fetch_one(&app.pool)
                .await
                .expect("pg_stat_activity");
                (count > 1).then_some(())
            })
            .await;
            held.end().await;
        };
        let (answers, ()) = join(calls, ending).await;
        let triggered = answers.iter().filter(|answer| answer["triggered"] == true);
        let expected = if named { 1 } else { 8 };
        assert_eq!(triggered.count(), expected, "{reentry}");
        let outcomes = app.outcomes("call").await;
        let sent = outcomes.iter().filter(|outcome| *outcome == "sent");
        assert_eq!(sent.count(), 1, "{reentry}");
        assert_eq!(app.count("messages").await, 1, "{reentry}");
        app.stop().await;
    }
}

#[tokio::test]
async fn an_occasion_is_an_automations_own() {
    let app = App::start().await;
    let id = app.greeting().await;
    let mut runs = HashSet::new();
    for name in ["a", "b"] {
        let saved = app.automate(&on_call(name, id)).await;
        let called = app.call(&saved, &for_whom(PHONE, "x")).await.expect(200);
        assert_eq!(called.json()["triggered"], true);
        runs.insert(called.json()["run_id"].to_string());
    }
    assert_eq!(runs.len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn a_delay_of_a_webhook_is_counted_from_the_call() {
    let app = App::start().await;
    let mut body = on_call("call", app.greeting().await);
    body["delay_seconds"] = json!(600);
    let saved = app.automate(&body).await;
    let before = app.clock.now();
    app.call(&saved, &for_whom(PHONE, "x")).await.expect(200);
    assert_eq!(app.outcomes("call").await, ["scheduled"]);
    let due = App::time(&app.runs("call").await[0]["due_at"]);
    let delay = TimeDelta::seconds(600);
    assert!(due >= before + delay && due <= app.clock.now() + delay);
    app.clock.advance(delay);
    assert_eq!(app.outcomes("call").await, ["sent"]);
    app.stop().await;
}

#[tokio::test]
async fn a_paused_webhook_is_409_and_leaves_nothing() {
    let app = App::start().await;
    let mut body = on_call("call", app.greeting().await);
    let saved = app.automate(&body).await;
    body["status"] = json!("paused");
    app.automate(&body).await;
    let before = snapshot(&app.pool).await;
    let answer = app.call(&saved, &for_whom(PHONE, "x")).await.expect(409);
    assert_eq!(answer.code(), "automation_paused");
    assert_eq!(snapshot(&app.pool).await, before);
    body["status"] = json!("active");
    app.automate(&body).await;
    let called = app.call(&saved, &for_whom(PHONE, "x")).await.expect(200);
    assert_eq!(called.json()["triggered"], true);
    app.stop().await;
}

#[tokio::test]
async fn values_come_from_where_the_automation_says_and_the_rest_from_the_call() {
    let app = App::start().await;
    let id = app.template("hello", "{{a}} {{b}} {{c}} {{d}} {{e}}").await;
    let mut body = on_call("call", id);
    body["action"]["send_template"]["variables"] = json!({
        "a": "=literal", "b": "/phone_number", "c": "/external_id", "d": "/variables/other",
    });
    let saved = app.automate(&body).await;
    let mut call = for_whom("+33 6 12 34 56 78", "occasion");
    call["variables"] = json!({ "e": "own", "other": "pointed at" });
    app.call(&saved, &call).await.expect(200);
    app.at_rest().await;
    let content: Value = sqlx::query_scalar("select content from messages")
        .fetch_one(&app.pool)
        .await
        .expect("one message");
    let expected = json!([
        ["a", "literal"],
        ["b", PHONE],
        ["c", "occasion"],
        ["d", "pointed at"],
        ["e", "own"]
    ]);
    assert_eq!(content["variables"], expected);
    let input: Option<Value> = sqlx::query_scalar("select input from automation_runs")
        .fetch_one(&app.pool)
        .await
        .expect("one run");
    assert_eq!(input, None, "what was called with is not kept");
    app.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_is_ignored_and_said_to_be() {
    let app = App::start().await;
    let saved = automate(&app, json!("every_change")).await;
    let id = saved["webhook_id"].as_str().expect("an id");
    let path = format!("/api/v1/automations/{id}");
    let mut runs = HashSet::new();
    for key in ["k", "k", "two"] {
        let body = for_whom(PHONE, "").to_string();
        let answer = if key == "k" {
            app.keyed(&path, key, body).await
        } else {
            app.with_keys(&path, &[b"one", b"two"], &body).await
        };
        let answer = answer.expect(200);
        assert_eq!(answer.header("idempotency-status"), "ignored");
        runs.insert(answer.json()["run_id"].to_string());
    }
    assert_eq!(runs.len(), 3);
    assert_eq!(app.count("idempotency_keys").await, 0);
    let plain = app.call(&saved, &for_whom(PHONE, "")).await.expect(200);
    assert_eq!(plain.header("idempotency-status"), "");
    app.stop().await;
}
