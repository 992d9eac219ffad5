//! `keyfold outbox list` and `retry`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::super::{failure, json_of, keyfold, run};
use super::printed;
use crate::support::app::App;
use crate::support::meta::{Behaviour, Meta, Then};
use crate::support::whatsapp::{ADA, course, hear_from, left, message, send_text, start, until};

/// The entry of a message in `keyfold outbox list`, with the times that only the service knows.
fn entry(app: &App, id: Uuid, state: &str, code: &str, shown: &Value) -> Value {
    json!({
        "store_id": app.store_id, "id": id, "kind": "message", "state": state, "attempt": 1,
        "due_at": shown["due_at"], "error_code": code, "created_at": shown["created_at"]
    })
}

#[tokio::test]
async fn dead_messages_are_listed_and_sent_again_and_unknown_ones_never() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let people = [ADA, "+33612345679", "+33612345680"];
    hear_from(&app, app.store_id, &people).await;
    let mut ids = Vec::new();
    meta.behave(|call| match call.to().as_str() {
        ADA => Behaviour::accept_then(Then::Reset),
        _ => Behaviour::error(131_026, 400),
    });
    for (person, status) in people.iter().zip(["unknown", "failed", "failed"]) {
        let id = send_text(&app, app.store_id, person).await;
        until(&app, app.store_id, id, status).await;
        ids.push(id);
    }
    meta.behave(|_| Behaviour::accept());
    let (url, store) = (app.database_url.as_str(), app.store_id.to_string());
    let list = |more: &[&str]| {
        let arguments = [&["outbox", "list", "--store", &store], more].concat();
        json_of(url, &arguments)["data"]
            .as_array()
            .expect("a list")
            .clone()
    };
    let all = list(&[]);
    assert_eq!(all.len(), 3);
    let expected = [
        entry(&app, ids[0], "unknown", "connection_lost", &all[0]),
        entry(&app, ids[1], "dead", "131026", &all[1]),
        entry(&app, ids[2], "dead", "131026", &all[2]),
    ];
    assert_eq!(all, expected);
    assert_eq!(list(&["--state", "dead"]), expected[1..]);
    assert_eq!(list(&["--state", "unknown"]), expected[..1]);
    assert_eq!(list(&["--state", "waiting"]), [] as [Value; 0]);
    assert_eq!(list(&["--limit", "1"]), expected[..1]);

    let retry = |more: &[&str]| {
        let arguments = [&["outbox", "retry", "--json", "--store", &store], more].concat();
        run(keyfold().args(arguments).env("DATABASE_URL", url))
    };
    let named: Vec<String> = ids.iter().map(ToString::to_string).collect();
    // All that are named, or none.
    for wrong in [&named[..1], &named[..2]] {
        let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
        let line = failure(&retry(&wrong));
        assert!(line.contains(&named[0]), "{line}");
    }
    assert_eq!(list(&[]), expected);
    assert_eq!(
        printed(&retry(&[&named[1]])),
        json!({ "data": [{ "id": named[1] }] })
    );
    let sent = until(&app, app.store_id, ids[1], "sent").await;
    let again = json!({
        "status": "sent", "code": null,
        "timeline": ["queued", ["failed", "131026"], "queued", "sent"]
    });
    assert_eq!(course(&sent), again);
    assert_eq!(
        printed(&retry(&["--all"])),
        json!({ "data": [{ "id": named[2] }] })
    );
    until(&app, app.store_id, ids[2], "sent").await;
    assert_eq!(printed(&retry(&["--all"])), json!({ "data": [] }));
    assert_eq!(
        message(&app, app.store_id, ids[0]).await["status"],
        "unknown"
    );
    let kept = left(&app, ids[0]).await.map(|(state, ..)| state);
    assert_eq!(kept.as_deref(), Some("unknown"));
    let calls: Vec<String> = meta.calls().iter().map(|call| call.to()).collect();
    assert_eq!(calls.iter().filter(|to| *to == ADA).count(), 1);
    assert_eq!(calls.len(), 5);
    app.stop().await;
}
