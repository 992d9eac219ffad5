//! Secrets of an export are in its calls alone, and its calls are signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};

use crate::support::exports::{calls, export, start};
use crate::support::receiver::{Call, Receiver, Says};
use crate::support::rows::texts;

/// Verifies a call as Standard Webhooks says.
fn is_signed(call: &Call, secret: &str) -> bool {
    let bytes = STANDARD.decode(&secret["whsec_".len()..]).expect("base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
    let (id, at) = (call.header("webhook-id"), call.header("webhook-timestamp"));
    let mut signed = format!("{id}.{at}.").into_bytes();
    signed.extend(&call.body);
    let signature = call
        .header("webhook-signature")
        .strip_prefix("v1,")
        .expect("v1");
    let signature = STANDARD.decode(signature).expect("base64");
    hmac::verify(&key, &signed, &signature).is_ok()
}

#[tokio::test]
async fn calls_carry_headers_and_signatures_under_the_secret_that_was_shown_once() {
    let (app, receiver) = (start().await, Receiver::start().await);
    let headers = json!({ "X-Api-Key": "canary-key", "Authorization": "Bearer canary-token" });
    let made = app.export(&receiver, &json!({ "headers": headers })).await;
    let secret = made["signing_secret"].as_str().expect("shown once");
    app.push("A/1 é", "1.00").await;
    let call = calls(&receiver, 1).await.remove(0);
    assert_eq!(
        (call.method.as_str(), call.target.as_str()),
        ("PUT", "/orders/A%2F1%20%C3%A9")
    );
    assert_eq!(call.header("content-type"), "application/json");
    assert_eq!(call.header("x-api-key"), "canary-key");
    assert_eq!(call.header("authorization"), "Bearer canary-token");
    assert!(is_signed(&call, secret));
    assert!(!is_signed(&call, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
    assert_eq!(call.header("webhook-id"), call.key());
    let at: i64 = call.header("webhook-timestamp").parse().expect("seconds");
    assert!((app.clock.now().timestamp() - at).abs() < 10);
    let shown = app.get("orders/A%2F1%20%C3%A9").await.expect(200);
    assert_eq!(call.json(), shown.json(), "the record as GET answers it");
    app.stop().await;
}

#[tokio::test]
async fn secrets_are_shown_nowhere_and_stored_only_sealed() {
    let (app, receiver) = (start().await, Receiver::start().await);
    receiver.says(|_| Says::Status(500));
    let canary = "canary-value-of-a-header";
    let made = app
        .export(&receiver, &json!({ "headers": { "X-Api-Key": canary } }))
        .await;
    let secret = made["signing_secret"]
        .as_str()
        .expect("shown once")
        .to_owned();
    app.push("A", "1.00").await;
    calls(&receiver, 1).await;
    let run = app.run().await;
    app.completed(&run).await;
    let bare = &secret["whsec_".len()..];
    let bytes = STANDARD.decode(bare).expect("base64");
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let signs = [
        canary.to_owned(),
        hex(canary.as_bytes()),
        bare.to_owned(),
        hex(bare.as_bytes()),
        hex(&bytes),
    ];
    let is_clean = |text: &str| signs.iter().all(|sign| !text.contains(sign));
    let rows = texts(&app.pool).await;
    assert!(rows.iter().any(|row| row.starts_with("exports ")));
    assert!(rows.iter().all(|row| is_clean(row)));
    for rest in ["", "/runs", "/log", "/deliveries"] {
        let answer = app.get(&format!("exports/erp{rest}")).await.expect(200);
        assert!(is_clean(&answer.text), "{}", answer.text);
    }
    let list = app.get("exports").await.expect(200);
    assert!(is_clean(&list.text));
    assert_eq!(list.json()["data"][0]["signing_secret"], Value::Null);
    app.stop().await;
}

#[tokio::test]
async fn sealed_secrets_open_only_in_their_export() {
    let (app, receiver) = (start().await, Receiver::start().await);
    app.export(&receiver, &json!({})).await;
    app.export(
        &receiver,
        &json!({ "external_id": "other", "status": "paused" }),
    )
    .await;
    sqlx::query(
        "update exports e set signing_secret = o.signing_secret
        from exports o where e.external_id = 'erp' and o.external_id = 'other'",
    )
    .execute(&app.pool)
    .await
    .expect("copied");
    app.push("A", "1.00").await;
    app.calls_have_come().await;
    assert_eq!(receiver.calls().len(), 0);
    assert_eq!(app.deliveries().await[0]["state"], "waiting");
    // Saved again it gets another secret, which is shown.
    let same = export(&receiver, &json!({}));
    let saved = app.post("exports", &same).await.expect(200);
    assert_eq!(saved.outcome(), "updated");
    let saved = saved.json();
    let secret = saved["signing_secret"].as_str().expect("shown once");
    assert!(is_signed(&calls(&receiver, 1).await[0], secret));
    let unchanged = app.post("exports", &same).await.expect(200);
    assert_eq!(unchanged.outcome(), "unchanged");
    app.stop().await;
}
