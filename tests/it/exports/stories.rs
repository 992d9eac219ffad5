//! What is sent, what is skipped, and under which key.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use serde_json::json;

use crate::support::exports::{counts, start};
use crate::support::receiver::{Receiver, Says};

#[tokio::test]
async fn a_run_that_was_cut_after_50_of_100_skips_50_and_sends_50_when_it_is_retried() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(100).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    receiver.says(|call| Says::Status(if call.number < 50 { 200 } else { 500 }));
    let run = app.run().await;
    assert_eq!(run["total"], 100);
    let cut = app.completed(&run).await;
    assert_eq!((counts(&cut), &cut["attempt"]), ([50, 0, 50], &json!(1)));
    assert_eq!(app.log().await.len(), 50, "failed calls leave no entry");
    let before = receiver.take_calls();
    receiver.says(|_| Says::Status(200));
    let id = run["run_id"].as_str().expect("an id");
    let again = app.ask(&format!("exports/erp/runs/{id}/retry")).await;
    assert_eq!(again.expect(202).json()["run_id"], run["run_id"]);
    let done = app.completed(&run).await;
    assert_eq!((counts(&done), &done["attempt"]), ([50, 50, 0], &json!(2)));
    assert_eq!((&done["total"], &done["pending"]), (&json!(100), &json!(0)));
    let calls = receiver.take_calls();
    assert_eq!(calls.len(), 50);
    let keys = |from: usize| -> BTreeSet<String> {
        let calls = before[from..].iter();
        calls.map(|call| call.key().to_owned()).collect()
    };
    let sent: BTreeSet<String> = calls.iter().map(|call| call.key().to_owned()).collect();
    assert_eq!(sent, keys(50), "the same keys until success");
    let results = format!("exports/erp/runs/{id}/results?limit=200");
    let results = app.get(&results).await.expect(200).json();
    let of = |outcome: &str| {
        let results = results["data"].as_array().expect("a list").iter();
        results.filter(|one| one["outcome"] == outcome).count()
    };
    assert_eq!((of("sent"), of("skipped"), of("failed")), (50, 50, 0));
    app.stop().await;
}

#[tokio::test]
async fn a_full_sync_without_changes_calls_nobody_and_one_change_is_one_call_with_a_new_key() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(20).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    assert_eq!(app.run_through().await, [20, 0, 0]);
    let first = receiver.take_calls();
    assert_eq!(first.len(), 20);
    assert_eq!(app.run_through().await, [0, 20, 0]);
    assert_eq!(receiver.take_calls().len(), 0);
    app.push("A-00007", "11.00").await;
    assert_eq!(app.run_through().await, [1, 19, 0]);
    let again = receiver.take_calls();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].target, "/orders/A-00007");
    assert_eq!(again[0].json()["total_price"], "11.00");
    assert!(first.iter().all(|call| call.key() != again[0].key()));
    app.stop().await;
}

#[tokio::test]
async fn a_then_b_then_a_again_are_three_calls_with_three_keys() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({})).await;
    for total in ["1.00", "2.00", "1.00"] {
        app.push("A", total).await;
        app.exported().await;
    }
    let calls = receiver.take_calls();
    let totals: Vec<_> = calls
        .iter()
        .map(|call| call.json()["total_price"].clone())
        .collect();
    assert_eq!(totals, ["1.00", "2.00", "1.00"]);
    let keys: BTreeSet<&str> = calls.iter().map(|call| call.key()).collect();
    assert_eq!(keys.len(), 3);
    assert_eq!(app.log().await.len(), 3);
    app.stop().await;
}

#[tokio::test]
async fn by_primary_key_a_changed_record_is_not_sent_again() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let idempotency = json!({ "strategy": "primary_key" });
    app.export(&receiver, &json!({ "idempotency": idempotency }))
        .await;
    for total in ["1.00", "2.00"] {
        app.push("A", total).await;
        app.exported().await;
    }
    assert_eq!(receiver.take_calls().len(), 1);
    assert_eq!(app.run_through().await, [0, 1, 0]);
    assert_eq!(receiver.take_calls().len(), 0);
    app.stop().await;
}

#[tokio::test]
async fn without_resending_on_change_a_changed_record_is_not_sent_again() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let idempotency = json!({ "resend_on_change": false });
    app.export(&receiver, &json!({ "idempotency": idempotency }))
        .await;
    for total in ["1.00", "2.00"] {
        app.push("A", total).await;
        app.exported().await;
    }
    assert_eq!(receiver.take_calls().len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn what_is_forgotten_is_sent_again_under_a_new_key() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(3).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    assert_eq!(app.run_through().await, [3, 0, 0]);
    let entry = app.log().await[0].clone();
    let key = entry["key"].as_str().expect("a key");
    let first = receiver.take_calls();
    assert!(first.iter().any(|call| call.key() == key));
    app.delete(&format!("exports/erp/log/{key}"))
        .await
        .expect(204);
    app.delete(&format!("exports/erp/log/{key}"))
        .await
        .expect(404);
    assert_eq!(app.run_through().await, [1, 2, 0]);
    let again = receiver.take_calls();
    assert_eq!(again[0].external_id(), entry["external_id"]);
    assert!(first.iter().all(|call| call.key() != again[0].key()));
    app.delete("exports/erp/log?resource=orders&external_id=A-00001")
        .await
        .expect(204);
    assert_eq!(app.run_through().await, [1, 2, 0]);
    app.delete("exports/erp/log?resource=orders")
        .await
        .expect(204);
    assert_eq!(app.run_through().await, [3, 0, 0]);
    let missing = app.delete("exports/erp/log").await.expect(400);
    assert_eq!(missing.faulty(), ["resource"]);
    let keys: BTreeSet<String> = [first, again, receiver.take_calls()]
        .concat()
        .iter()
        .map(|call| call.key().to_owned())
        .collect();
    assert_eq!(keys.len(), 8, "no key is used for two sends");
    app.stop().await;
}

#[tokio::test]
async fn after_its_retention_an_entry_does_not_count() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(2).await;
    app.export(&receiver, &json!({ "mode": "manual", "retention_days": 2 }))
        .await;
    assert_eq!(app.run_through().await, [2, 0, 0]);
    app.clock.advance(TimeDelta::hours(47));
    assert_eq!(app.run_through().await, [0, 2, 0]);
    app.clock.advance(TimeDelta::hours(2));
    assert_eq!(app.log().await, [json!(null); 0]);
    assert_eq!(app.run_through().await, [2, 0, 0]);
    keyfold::maintenance::clean(&app.state).await;
    assert_eq!(app.count("export_log").await, 2, "old entries are deleted");
    app.stop().await;
}

#[tokio::test]
async fn the_key_has_its_header_another_one_or_none() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push("A", "1.00").await;
    let manual = |idempotency| json!({ "mode": "manual", "idempotency": idempotency });
    app.export(&receiver, &manual(json!({}))).await;
    let mut keys = Vec::new();
    for (idempotency, header) in [
        (json!({}), "idempotency-key"),
        (json!({ "header": "X-Request-Key" }), "x-request-key"),
        (json!({ "header": null }), ""),
        (json!({ "enabled": false }), ""),
    ] {
        let body = crate::support::exports::export(&receiver, &manual(idempotency));
        app.post("exports", &body).await.expect(200);
        app.delete("exports/erp/log?resource=orders")
            .await
            .expect(204);
        assert_eq!(app.run_through().await, [1, 0, 0]);
        let call = receiver.take_calls().remove(0);
        let key = call.header("webhook-id").to_owned();
        assert!(key.starts_with("kfx_"), "{key}");
        let carrying: Vec<&str> = call
            .headers
            .iter()
            .filter(|(name, value)| *value == key && name != "webhook-id")
            .map(|(name, _)| name.as_str())
            .collect();
        let expected: Vec<&str> = Some(header)
            .filter(|name| !name.is_empty())
            .into_iter()
            .collect();
        assert_eq!(carrying, expected);
        assert_eq!(app.log().await[0]["key"], key);
        keys.push(key);
    }
    // Not enabled: the log is written, but not asked.
    assert_eq!(app.run_through().await, [1, 0, 0]);
    let unique: BTreeSet<&String> = keys.iter().collect();
    assert_eq!(unique.len(), keys.len());
    app.stop().await;
}

#[tokio::test]
async fn a_run_survives_a_restart_and_a_second_one_waits_for_its_end() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(1_500).await;
    app.export(&receiver, &json!({ "mode": "manual" })).await;
    let run = app.run().await;
    let same = app.ask("exports/erp/runs").await.expect(200).json();
    assert_eq!(same["run_id"], run["run_id"]);
    crate::support::exports::calls(&receiver, 100).await;
    let (url, store_id, key) = (app.database_url.clone(), app.store_id, app.key.clone());
    app.stop().await;
    let cut = receiver.calls().len();
    assert!(cut < 1_500, "stopped in the middle");
    let limits = keyfold::edge::Limits::default();
    let mut app =
        crate::support::app::App::start_on(url, crate::support::exports::configure, limits).await;
    (app.store_id, app.key) = (store_id, key);
    let done = app.completed(&run).await;
    assert_eq!(counts(&done), [1_500, 0, 0]);
    let keys: BTreeSet<String> = receiver
        .calls()
        .iter()
        .map(|call| call.key().to_owned())
        .collect();
    assert_eq!((keys.len(), receiver.calls().len()), (1_500, 1_500));
    let runs = app.get("exports/erp/runs").await.expect(200).json();
    assert_eq!(runs["data"], json!([done]));
    app.stop().await;
}
