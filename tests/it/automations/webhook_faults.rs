//! Calls of a webhook that are refused, each fault by its field.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::{App, tenant};
use crate::support::automations::{on_call, on_change};
use crate::support::messaging::PHONE;
use crate::support::rows::snapshot;

#[tokio::test]
async fn an_unknown_webhook_is_404_and_so_is_one_of_another_team_or_store() {
    let app = App::start().await;
    let saved = app.automate(&on_call("call", app.greeting().await)).await;
    let body = json!({ "phone_number": PHONE }).to_string();
    let webhook = saved["webhook_id"].as_str().expect("an id");
    let own = format!("/api/v1/automations/{webhook}");
    let before = snapshot(&app.pool).await;
    for unknown in [
        "01a21829-4c43-76b8-a2d0-ad5460a49fce",
        saved["id"].as_str().expect("an id"),
        "call",
        "0",
        "%00",
    ] {
        let path = format!("/api/v1/automations/{unknown}");
        let answer = app.deliver(&path, body.as_str()).await.expect(404);
        assert_eq!(answer.code(), "not_found", "{unknown}");
    }
    assert_eq!(snapshot(&app.pool).await, before);
    let (_, _, foreign) = tenant(&app.pool, &app.clock, "Other").await;
    let (_, neighbour) = app.another_store(None).await;
    let before = snapshot(&app.pool).await;
    for key in [foreign, neighbour] {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        let answer = app.send(Method::POST, &own, &headers, body.as_str()).await;
        assert_eq!(answer.expect(404).code(), "not_found");
    }
    assert_eq!(snapshot(&app.pool).await, before);
    app.deliver(&own, body).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn each_faulty_field_of_a_call_is_named_and_nothing_is_written() {
    let app = App::start().await;
    let id = app.template("hello", "Hello {{name}} {{url}}").await;
    let mut body = on_call("call", id);
    body["action"]["send_template"]["variables"] = json!({ "url": "/variables/link" });
    let saved = app.automate(&body).await;
    let good = json!({
        "phone_number": PHONE, "external_id": "x", "variables": { "name": "Ada", "link": "l" },
    });
    let before = snapshot(&app.pool).await;
    let long = "é".repeat(1_025);
    for (name, value, faulty) in [
        ("phone_number", Value::Null, vec!["phone_number"]),
        ("phone_number", json!("nobody"), vec!["phone_number"]),
        ("phone_number", json!("0612345678"), vec!["phone_number"]),
        (
            "phone_number",
            json!(33_612_345_678_i64),
            vec!["phone_number"],
        ),
        ("external_id", json!(""), vec!["external_id"]),
        ("external_id", json!("e".repeat(256)), vec!["external_id"]),
        ("external_id", json!(5), vec!["external_id"]),
        ("variables", json!([]), vec!["variables"]),
        ("variables", json!("Ada"), vec!["variables"]),
        (
            "variables",
            Value::Null,
            vec!["variables.link", "variables.name"],
        ),
        (
            "variables",
            json!({}),
            vec!["variables.link", "variables.name"],
        ),
        (
            "variables",
            json!({ "name": "Ada" }),
            vec!["variables.link"],
        ),
        ("variables", json!({ "link": "l" }), vec!["variables.name"]),
        (
            "variables",
            json!({ "name": 5, "link": long }),
            vec!["variables.link", "variables.name"],
        ),
        (
            "variables",
            json!({ "name": "Ada", "link": "l", "url": "u", "more": "m" }),
            vec!["variables.more", "variables.url"],
        ),
        ("store_id", json!(1), vec!["store_id"]),
        ("name", json!("Ada"), vec!["name"]),
    ] {
        let mut body = good.clone();
        body[name] = value;
        let answer = app.call(&saved, &body).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text);
        assert_eq!(answer.faulty(), faulty, "{body}");
    }
    for body in [json!([]), json!([good]), json!("x")] {
        app.call(&saved, &body).await.expect(422);
    }
    assert_eq!(snapshot(&app.pool).await, before);
    let longest = "é".repeat(1_024);
    let mut body = good;
    body["variables"]["link"] = json!(longest);
    app.call(&saved, &body).await.expect(200);
    assert_eq!(app.outcomes("call").await, ["sent"]);
    app.stop().await;
}

#[tokio::test]
async fn an_occasion_that_the_message_needs_must_be_there() {
    let app = App::start().await;
    let mut body = on_call("call", app.template("t", "Order {{number}}").await);
    body["action"]["send_template"]["variables"] = json!({ "number": "/external_id" });
    let saved = app.automate(&body).await;
    let call = json!({ "phone_number": PHONE });
    let answer = app.call(&saved, &call).await.expect(422);
    assert_eq!(answer.faulty(), ["external_id"]);
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_json_is_refused_like_everywhere() {
    let app = App::start().await;
    let saved = app.automate(&on_call("call", app.greeting().await)).await;
    let webhook = saved["webhook_id"].as_str().expect("an id");
    let path = format!("/api/v1/automations/{webhook}");
    for (body, kind, status) in [
        ("", "application/json", 400),
        ("{", "application/json", 400),
        ("{}", "text/plain", 415),
        ("{\"a\":1,\"a\":2}", "application/json", 400),
    ] {
        let headers = [("content-type", kind)];
        let answer = app.send(Method::POST, &path, &headers, body).await;
        assert_eq!(answer.status, status, "{body} {kind}: {}", answer.text);
    }
    app.send(Method::GET, &path, &[], "").await.expect(405);
    app.stop().await;
}

#[tokio::test]
async fn an_automation_of_records_can_not_be_called() {
    let app = App::start().await;
    let saved = app
        .automate(&on_change("a", "orders", app.greeting().await))
        .await;
    let path = format!(
        "/api/v1/automations/{}",
        saved["id"].as_str().expect("an id")
    );
    let body = json!({ "phone_number": PHONE }).to_string();
    app.deliver(&path, body).await.expect(404);
    assert_eq!(app.count("automation_runs").await, 0);
    app.stop().await;
}
