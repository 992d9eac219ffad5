//! `keyfold automation list` and `runs`.

use serde_json::{Value, json};

use super::{failure, json_of, keyfold, run, stdout};
use crate::support::app::{App, tenant};
use crate::support::automations::{checkout, on_call, on_change};
use crate::support::messaging::PHONE;

/// What a command prints for people.
fn lines(url: &str, arguments: &[&str]) -> Vec<String> {
    let output = run(keyfold().args(arguments).env("DATABASE_URL", url));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    stdout(&output).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn automations_of_a_store_are_listed_as_they_are_answered() {
    let app = App::start().await;
    let (url, store) = (app.database_url.as_str(), app.store_id.to_string());
    let list = ["automation", "list", "--store", &store];
    assert_eq!(json_of(url, &list), json!({ "data": [] }));
    assert_eq!(lines(url, &list), [""; 0]);
    let id = app.greeting().await;
    let mut first = on_change("recover", "checkouts", id);
    first["name"] = json!("Recover a checkout");
    first["delay_seconds"] = json!(1_800);
    first["status"] = json!("paused");
    let first = app.automate(&first).await;
    let second = app.automate(&on_call("call", id)).await;
    assert_eq!(json_of(url, &list), json!({ "data": [first, second] }));
    let said = lines(url, &list);
    let parts: [&[&str]; 2] = [
        &[
            "recover",
            "paused",
            "checkouts",
            "1800",
            "Recover a checkout",
        ],
        &["call", "active", "webhook"],
    ];
    assert_eq!(said.len(), 2);
    for (line, parts) in said.iter().zip(parts) {
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    let webhook = second["webhook_id"].as_str().expect("an id");
    assert!(!said[1].contains(webhook), "whoever knows it can call it");
    // Another store has none of them.
    let other = tenant(&app.pool, &app.clock, "Other").await.1.to_string();
    let list = ["automation", "list", "--store", &other];
    assert_eq!(json_of(url, &list), json!({ "data": [] }));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_an_automation_are_listed_narrowed_and_continued() {
    let app = App::start().await;
    let (url, store) = (app.database_url.as_str(), app.store_id.to_string());
    let id = app.greeting().await;
    let mut body = on_change("recover", "checkouts", id);
    body["reentry"] = json!("once_per_record");
    app.automate(&body).await;
    app.post("checkouts", &checkout("B-1", "abandoned"))
        .await
        .expect(201);
    app.at_rest().await;
    app.patch("checkouts/B-1", &json!({ "tags": ["vip"] }))
        .await
        .expect(200);
    app.at_rest().await;
    let answered = app.runs("recover").await;
    assert_eq!(answered.len(), 2);
    let named = [
        "automation",
        "runs",
        "--store",
        &store,
        "--automation",
        "recover",
    ];
    let list = |more: &[&str]| -> Vec<Value> {
        let said = json_of(url, &[&named, more].concat());
        said["data"].as_array().expect("a list").clone()
    };
    assert_eq!(list(&[]), answered);
    assert_eq!(list(&["--status", "sent"]), answered[..1]);
    assert_eq!(list(&["--status", "skipped"]), answered[1..]);
    assert_eq!(list(&["--status", "failed"]), [] as [Value; 0]);
    assert_eq!(list(&["--limit", "1"]), answered[..1]);
    let first = answered[0]["run_id"].as_str().expect("an id");
    assert_eq!(list(&["--after", first]), answered[1..]);
    let said = lines(url, &named);
    let message = answered[0]["message_id"].as_str().expect("an id");
    let parts: [&[&str]; 2] = [
        &[first, "checkouts B-1", "sent", message],
        &["checkouts B-1", "skipped", "reentry"],
    ];
    assert_eq!(said.len(), 2);
    for (line, parts) in said.iter().zip(parts) {
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_calls_and_failures_say_why_and_name_nobody() {
    let app = App::start().await;
    let (url, store) = (app.database_url.as_str(), app.store_id.to_string());
    let saved = app.automate(&on_call("call", app.greeting().await)).await;
    for occasion in [json!({ "external_id": "first" }), json!({})] {
        let mut body = occasion;
        body["phone_number"] = json!(PHONE);
        app.call(&saved, &body).await.expect(200);
    }
    let mut fails = on_change("fails", "checkouts", app.template("t", "{{v}}").await);
    fails["action"]["send_template"]["variables"] = json!({ "v": "/currency" });
    app.automate(&fails).await;
    app.post("checkouts", &checkout("B-1", "abandoned"))
        .await
        .expect(201);
    app.at_rest().await;
    let of = |automation: &str| {
        let arguments = [
            "automation",
            "runs",
            "--store",
            &store,
            "--automation",
            automation,
        ];
        lines(url, &arguments)
    };
    let calls = of("call");
    assert_eq!(calls.len(), 2);
    assert!(calls[0].contains("webhook first  sent"), "{calls:?}");
    assert!(calls[1].contains("webhook  skipped  reentry"), "{calls:?}");
    let failed = of("fails");
    assert!(
        failed[0].contains("failed  variable_missing (v)"),
        "{failed:?}"
    );
    for line in calls.iter().chain(&failed) {
        assert!(!line.contains("612345678"), "{line}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_or_wrongly_asked_for_is_said_in_one_line() {
    let app = App::start().await;
    let (url, store) = (app.database_url.as_str(), app.store_id.to_string());
    let fails = |arguments: &[&str]| {
        let output = run(keyfold().args(arguments).env("DATABASE_URL", url));
        failure(&output)
    };
    let line = fails(&["automation", "list", "--store", "77"]);
    assert!(line.contains("there is no store 77"), "{line}");
    let line = fails(&["automation", "runs", "--store", &store, "--automation", "x"]);
    assert!(line.contains("no automation x"), "{line}");
    let named = ["automation", "runs", "--store", &store, "--automation", "x"];
    for wrong in [
        &["automation"][..],
        &["automation", "list"],
        &["automation", "list", "--store", "first"],
        &["automation", "runs", "--store", "1"],
        &["automation", "runs", "--automation", "x"],
        &[&named[..], &["--status", "done"]].concat(),
        &[&named[..], &["--limit", "0"]].concat(),
        &[&named[..], &["--limit", "10001"]].concat(),
        &[&named[..], &["--after", "x"]].concat(),
    ] {
        let output = run(keyfold().args(wrong).env("DATABASE_URL", url));
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    app.stop().await;
}
