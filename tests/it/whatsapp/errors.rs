//! What each of the API's error codes does to a message.

use serde_json::{Value, json};

use crate::support::meta::{Behaviour, Meta, Reply, Then, words};
use crate::support::webhooks::{self, Told};
use crate::support::whatsapp::{
    ADA, Days, another_store, calls_of, course, hear_from, left, message, number_of, pass_days,
    send_text, start, until,
};

/// Codes and HTTP statuses after which a message has failed.
const FAILED: &[(i64, u16)] = &[
    (100, 400),
    (131_008, 400),
    (131_026, 400),
    (131_026, 500),
    (131_030, 400),
    (131_047, 400),
    (131_049, 400),
    (131_050, 400),
    (131_051, 400),
    (132_000, 400),
    (132_001, 404),
    (132_001, 200),
    (132_015, 400),
    (999_999, 400),
];

/// After which nobody knows.
const UNKNOWN: &[(i64, u16)] = &[
    (1, 400),
    (2, 503),
    (131_000, 500),
    (131_000, 400),
    (131_016, 500),
    (133_004, 503),
    (999_999, 500),
];

#[tokio::test]
async fn an_error_is_judged_by_its_code_and_what_failed_or_is_unknown_is_not_sent_again() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let days = Days::of(&meta);
    let mut sent = Vec::new();
    let failed = FAILED.iter().map(|case| (*case, "failed", "dead"));
    let unknown = UNKNOWN.iter().map(|case| (*case, "unknown", "unknown"));
    for ((code, http), status, state) in failed.chain(unknown) {
        let store_id = another_store(&app).await;
        days.set(store_id, Behaviour::error(code, http));
        hear_from(&app, store_id, &[ADA]).await;
        let id = send_text(&app, store_id, ADA).await;
        sent.push((store_id, id, code, http, status, state));
    }
    for (store_id, id, code, http, status, state) in &sent {
        let message = until(&app, *store_id, *id, status).await;
        let code = code.to_string();
        let expected = json!({
            "status": status, "code": code, "timeline": ["queued", [status, code]]
        });
        assert_eq!(course(&message), expected, "{code} with {http}");
        let error = json!({ "code": code, "detail": words(code.parse().expect("a number")) });
        assert_eq!(message["error"], error, "{code} with {http}");
        assert_eq!(message["timeline"][1]["detail"], error["detail"]);
        let kept = left(&app, *id).await.expect("it can be seen");
        assert_eq!(kept, ((*state).to_owned(), 1, Some(code)));
    }
    meta.behave(|_| Behaviour::accept());
    let stores: Vec<i64> = sent.iter().map(|(store_id, ..)| *store_id).collect();
    pass_days(&app, &stores).await;
    for (store_id, id, code, http, status, _) in &sent {
        assert_eq!(calls_of(&meta, *store_id).len(), 1, "{code} with {http}");
        let message = message(&app, *store_id, *id).await;
        assert_eq!(message["status"], **status, "{code} with {http}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_failure_that_the_provider_tells_later_is_final_whatever_its_code() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let codes = [
        131_026, 131_047, 131_049, 131_056, 130_429, 131_048, 190, 131_000, 132_000, 999_999,
    ];
    let number = number_of(app.store_id);
    let mut sent = Vec::new();
    for (n, code) in (10..).zip(codes) {
        let person = format!("+336123456{n}");
        hear_from(&app, app.store_id, &[&person]).await;
        let id = send_text(&app, app.store_id, &person).await;
        until(&app, app.store_id, id, "sent").await;
        sent.push((id, code));
    }
    let calls = meta.calls();
    let failures: Vec<Value> = sent
        .iter()
        .zip(&calls)
        .map(|((_, code), call)| {
            let told = Told {
                id: &call.message_id(),
                reference: &call.reference(),
                status: "failed",
                at: app.clock.now().timestamp(),
                code: Some(*code),
            };
            told.item()
        })
        .collect();
    webhooks::tell(&app, &[webhooks::value(&number, "statuses", &failures)]).await;
    pass_days(&app, &[app.store_id]).await;
    for (id, code) in &sent {
        let message = message(&app, app.store_id, *id).await;
        let error = json!({ "code": code.to_string(), "detail": words(*code) });
        assert_eq!(
            (&message["status"], &message["error"]),
            (&json!("failed"), &error)
        );
        let steps: Vec<&Value> = message["timeline"]
            .as_array()
            .expect("a timeline")
            .iter()
            .map(|step| &step["status"])
            .collect();
        assert_eq!(steps.len(), 3, "{message}");
        assert_eq!(left(&app, *id).await, None);
    }
    assert_eq!(meta.calls().len(), sent.len());
    app.stop().await;
}

#[tokio::test]
async fn a_refusal_without_a_code_is_final_too() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let days = Days::of(&meta);
    let mut sent = Vec::new();
    for http in [400, 401, 404, 413] {
        let store_id = another_store(&app).await;
        let reply = Reply::plain(http);
        days.set(store_id, Behaviour::refuse(Then::Answer(reply)));
        hear_from(&app, store_id, &[ADA]).await;
        sent.push((store_id, send_text(&app, store_id, ADA).await, http));
    }
    for (store_id, id, http) in &sent {
        let failed = until(&app, *store_id, *id, "failed").await;
        let code = format!("http_{http}");
        let expected = json!({
            "status": "failed", "code": code, "timeline": ["queued", ["failed", code]]
        });
        assert_eq!(course(&failed), expected);
    }
    let stores: Vec<i64> = sent.iter().map(|(store_id, ..)| *store_id).collect();
    pass_days(&app, &stores).await;
    assert_eq!(meta.calls().len(), sent.len());
    app.stop().await;
}
