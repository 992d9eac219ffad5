//! `keyfold export`.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{failure, json_of, keyfold, run, stdout};
use crate::support::app::App;
use crate::support::exports::start;
use crate::support::receiver::{Receiver, Says};
use crate::support::scale::eventually;

/// What a list prints about `erp`.
fn list(app: &App, command: &str, more: &[&str]) -> Vec<Value> {
    let store = app.store_id.to_string();
    let arguments = [
        &["export", command, "--store", &store, "--export", "erp"],
        more,
    ]
    .concat();
    let printed = json_of(&app.database_url, &arguments);
    printed["data"].as_array().expect("a list").clone()
}

/// The lines for people.
fn lines(app: &App, command: &str) -> String {
    let store = app.store_id.to_string();
    let arguments = ["export", command, "--store", &store, "--export", "erp"];
    let output = run(keyfold()
        .args(arguments)
        .env("DATABASE_URL", &app.database_url));
    assert_eq!(output.status.code(), Some(0));
    stdout(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_is_listed_and_forgotten() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(3).await;
    let made = app.export(&receiver, &json!({ "mode": "manual" })).await;
    let run_begun = app.run().await;
    let done = app.completed(&run_begun).await;
    assert_eq!(list(&app, "runs", &[]), [done]);
    assert!(lines(&app, "runs").contains("sent 3  skipped 0  failed 0"));
    assert_eq!(list(&app, "log", &[]), app.log().await);
    assert!(lines(&app, "log").contains("orders A-00001"));
    let one = ["--resource", "orders", "--external-id", "A-00001"];
    let entry = list(&app, "log", &one);
    assert_eq!(
        (entry.len(), &entry[0]["external_id"]),
        (1, &json!("A-00001"))
    );
    assert_eq!(list(&app, "log", &["--limit", "2"]).len(), 2);

    let forgotten = |count: u64| [json!({ "forgotten": count })];
    assert_eq!(list(&app, "forget", &one), forgotten(1));
    assert_eq!(list(&app, "forget", &one), forgotten(0));
    let key = app.log().await[0]["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    assert_eq!(list(&app, "forget", &["--key", &key]), forgotten(1));
    assert_eq!(list(&app, "forget", &["--all"]), forgotten(1));
    assert_eq!(app.run_through().await, [3, 0, 0]);

    let store = app.store_id.to_string();
    let all = json_of(&app.database_url, &["export", "list", "--store", &store]);
    let mut shown = made;
    shown["signing_secret"] = Value::Null;
    assert_eq!(all["data"], json!([shown]));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_listed_and_sent_again() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::Status(500));
    app.export(&receiver, &json!({})).await;
    app.push("A", "1.00").await;
    app.push("B", "1.00").await;
    let dead = eventually("both are dead", || async {
        app.clock.advance(TimeDelta::hours(12));
        let dead = list(&app, "deliveries", &["--state", "dead"]);
        (dead.len() == 2).then_some(dead)
    })
    .await;
    assert_eq!(dead, app.deliveries().await);
    assert!(lines(&app, "deliveries").contains("dead  tried 8"));
    assert_eq!(
        list(&app, "deliveries", &["--state", "waiting"]),
        [json!(null); 0]
    );
    receiver.take_calls();
    receiver.says(|_| Says::Status(200));
    let id = dead[0]["id"].as_str().expect("an id");
    // The service's clock was moved ahead, the command's was not: what it revives is due.
    assert_eq!(list(&app, "replay", &[id]), [json!({ "id": id })]);
    app.exported().await;
    assert_eq!(receiver.calls().len(), 1);
    let store = app.store_id.to_string();
    let again = ["export", "replay", "--store", &store, "--export", "erp", id];
    let refused = run(keyfold().args(again).env("DATABASE_URL", &app.database_url));
    assert!(failure(&refused).contains("is not dead"));
    assert_eq!(app.deliveries().await.len(), 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_export_and_wrong_usage_are_said() {
    let app = App::start().await;
    let (url, store) = (app.database_url.as_str(), app.store_id.to_string());
    let of = ["export", "runs", "--store", &store, "--export", "nothing"];
    let refused = run(keyfold().args(of).env("DATABASE_URL", url));
    assert!(failure(&refused).contains("has no export nothing"));
    for wrong in [
        &["forget"][..],
        &["forget", "--all", "--key", "k"],
        &["forget", "--resource", "nothing"],
        &["replay"],
        &["log", "--external-id", "A"],
    ] {
        let arguments = [
            &["export", wrong[0], "--store", &store, "--export", "erp"],
            &wrong[1..],
        ];
        let output = run(keyfold().args(arguments.concat()).env("DATABASE_URL", url));
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    app.stop().await;
}
