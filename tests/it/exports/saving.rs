//! Exports are upserted, answered without secrets, and refused with every faulty field.

use http::Method;
use keyfold::edge::Limits;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::exports::{configure, export, start};
use crate::support::receiver::Receiver;

#[tokio::test]
async fn an_export_is_created_replaced_and_left_alone() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let body = export(
        &receiver,
        &json!({ "headers": { "X-Api-Key": "a secret" } }),
    );
    let created = app.post("exports", &body).await.expect(201);
    assert_eq!(created.outcome(), "created");
    assert_eq!(created.header("location"), app.path("exports/erp"));
    let mut shown = created.json();
    let secret = shown["signing_secret"].take();
    assert!(
        secret
            .as_str()
            .is_some_and(|secret| secret.starts_with("whsec_"))
    );
    let expected = json!({
        "id": shown["id"], "store_id": app.store_id, "external_id": "erp", "status": "active",
        "paused_code": null, "resources": ["orders"], "mode": "live",
        "url": receiver.url("{resource}/{external_id}"), "method": "PUT",
        "header_names": ["X-Api-Key"],
        "idempotency": {
            "enabled": true, "strategy": "primary_key_and_hash", "header": "Idempotency-Key",
            "resend_on_change": true
        },
        "retention_days": 7, "signing_secret": null, "created_at": shown["created_at"],
        "updated_at": shown["updated_at"],
    });
    assert_eq!(shown, expected);
    let unchanged = app.post("exports", &body).await.expect(200);
    assert_eq!(
        (unchanged.outcome(), unchanged.json()),
        ("unchanged", shown.clone())
    );
    assert_eq!(app.get("exports/erp").await.expect(200).json(), shown);
    let list = app.get("exports").await.expect(200).json();
    assert_eq!(list, json!({ "data": [shown], "next_cursor": null }));

    let other = export(&receiver, &json!({ "headers": { "X-Api-Key": "another" } }));
    let updated = app.post("exports", &other).await.expect(200);
    assert_eq!(updated.outcome(), "updated");
    let replaced = app
        .post("exports", &export(&receiver, &json!({})))
        .await
        .expect(200);
    assert_eq!(replaced.json()["header_names"], json!([]), "POST replaces");
    let given = json!({ "signing_secret": secret });
    let same = app
        .post("exports", &export(&receiver, &given))
        .await
        .expect(200);
    assert_eq!(same.outcome(), "unchanged", "the secret was kept all along");

    app.delete("exports/erp").await.expect(204);
    app.delete("exports/erp").await.expect(404);
    app.get("exports/erp").await.expect(404);
    for rest in ["runs", "log", "deliveries"] {
        app.get(&format!("exports/erp/{rest}")).await.expect(404);
    }
    app.ask("exports/erp/runs").await.expect(404);
    assert_eq!(
        app.count("event_consumers").await,
        0,
        "nobody looks at events"
    );
    app.stop().await;
}

#[tokio::test]
async fn every_faulty_field_is_named() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let faulty = json!({
        "external_id": "", "status": "off", "resources": ["orders", "nothing"], "mode": null,
        "url": "https://{resource}.example.com", "method": "DELETE",
        "headers": { "Content-Length": "1", "X-A": 1 },
        "idempotency": { "header": "a b", "strategy": "hash" }, "retention_days": 4_000,
        "signing_secret": "secret", "other": 1,
    });
    let answer = app.post("exports", &faulty).await.expect(422);
    let expected = [
        "external_id",
        "headers.Content-Length",
        "headers.X-A",
        "idempotency.header",
        "idempotency.strategy",
        "method",
        "other",
        "resources.1",
        "retention_days",
        "signing_secret",
        "status",
        "url",
    ];
    assert_eq!(answer.faulty(), expected);
    let both = json!({ "url": "http://10.0.0.1/{id}", "mode": "off" });
    let answer = app.post("exports", &export(&receiver, &both)).await;
    assert_eq!(answer.expect(422).faulty(), ["mode", "url"]);
    for url in [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest",
        "http://[::1]/{id}",
    ] {
        let body = export(&receiver, &json!({ "url": url }));
        let answer = app.post("exports", &body).await.expect(422);
        assert_eq!(answer.faulty(), ["url"], "{url}");
    }
    assert_eq!(app.count("exports").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn without_a_key_for_secrets_there_are_no_exports() {
    let keyless = |config: &mut keyfold::config::Config| {
        configure(config);
        config.secret_key = None;
    };
    let app = App::start_with(keyless, Limits::default()).await;
    let receiver = Receiver::start().await;
    let answer = app
        .post("exports", &export(&receiver, &json!({})))
        .await
        .expect(409);
    assert_eq!(answer.code(), "secret_key_missing");
    app.stop().await;
}

#[tokio::test]
async fn a_store_has_at_most_100_exports() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let named = |n: usize| export(&receiver, &json!({ "external_id": format!("e-{n}") }));
    for n in 0..100 {
        app.post("exports", &named(n)).await.expect(201);
    }
    let refused = app.post("exports", &named(100)).await.expect(422);
    assert_eq!(refused.faulty(), ["external_id"]);
    app.post("exports", &named(7)).await.expect(200);
    let page = app.get("exports?limit=60").await.expect(200).json();
    let cursor = page["next_cursor"].as_str().expect("there is more");
    let rest = app
        .get(&format!("exports?limit=60&cursor={cursor}"))
        .await
        .expect(200);
    assert_eq!(rest.json()["data"].as_array().map(Vec::len), Some(40));
    app.stop().await;
}

#[tokio::test]
async fn a_paused_export_begins_no_run_and_odd_requests_are_refused() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({ "status": "paused" })).await;
    let refused = app.ask("exports/erp/runs").await.expect(409);
    assert_eq!(refused.code(), "export_paused");
    for id in ["nothing", "01a21829-4c43-76b8-a2d0-ad5460a49fce"] {
        app.get(&format!("exports/erp/runs/{id}")).await.expect(404);
        app.ask(&format!("exports/erp/runs/{id}/retry"))
            .await
            .expect(404);
        app.get(&format!("exports/erp/runs/{id}/results"))
            .await
            .expect(404);
    }
    for query in ["state=idle", "limit=0", "nothing=1"] {
        let path = format!("exports/erp/deliveries?{query}");
        app.get(&path).await.expect(400);
    }
    let path = app.path("exports/erp/runs");
    let typed: &[(&str, &str)] = &[("content-type", "application/json")];
    for (body, headers, status) in [
        ("{}", typed, 409),
        ("{\"all\":true}", typed, 422),
        ("[]", typed, 422),
        ("{", typed, 400),
        ("x", &[("content-type", "text/plain")], 415),
    ] {
        app.send(Method::POST, &path, headers, body)
            .await
            .expect(status);
    }
    let long = "x".repeat(2 * 1_024 * 1_024);
    for (headers, status) in [(typed, 413), (&[("content-type", "text/plain")][..], 415)] {
        app.send(Method::POST, &path, headers, long.as_str())
            .await
            .expect(status);
    }
    app.delete("exports/erp/log/nothing").await.expect(404);
    app.delete("exports/erp/log?resource=nothing")
        .await
        .expect(400);
    let none: Value = app.get("exports/erp/runs").await.expect(200).json();
    assert_eq!(none["data"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn what_a_deleted_export_has_left_is_cleaned_up() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.push_many(30).await;
    app.export(&receiver, &json!({})).await;
    assert_eq!(app.run_through().await, [30, 0, 0]);
    app.delete("exports/erp").await.expect(204);
    keyfold::maintenance::clean(&app.state).await;
    for table in [
        "export_deliveries",
        "export_log",
        "export_runs",
        "export_results",
    ] {
        assert_eq!(app.count(table).await, 0, "{table}");
    }
    app.clock.advance(chrono::TimeDelta::hours(2));
    keyfold::maintenance::clean(&app.state).await;
    assert_eq!(app.count("export_leftovers").await, 0);
    app.stop().await;
}
