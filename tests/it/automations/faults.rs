//! Automations that can't do what they say are refused when they are saved, each fault by its field.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::on_call;
use crate::support::rows::snapshot;

/// A service and an automation that it takes.
struct Desk {
    app: App,
    body: Value,
}

impl Desk {
    async fn open() -> Self {
        let app = App::start().await;
        let id = app.template("hello", "Hello {{first_name}}").await;
        let body = json!({
            "external_id": "a",
            "trigger": { "resource": "checkouts", "when": { "status": "abandoned" } },
            "action": { "send_template": {
                "template_id": id, "variables": { "first_name": "/customer/first_name" },
            } },
        });
        app.automate(&body).await;
        Self { app, body }
    }

    /// Posts the automation with another value at a place; null takes the member away.
    async fn post(&self, pointer: &str, value: &Value) -> crate::support::app::Answer {
        let mut body = self.body.clone();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let parent = body.pointer_mut(parent).expect("it is there");
        let parent = parent.as_object_mut().expect("an object");
        parent.insert(name.to_owned(), value.clone());
        self.app.post("automations", &body).await
    }

    /// Fails unless the automation is refused because of just these fields, and nothing is written.
    async fn refuses(&self, pointer: &str, value: Value, faulty: &[&str]) {
        let before = snapshot(&self.app.pool).await;
        let answer = self.post(pointer, &value).await;
        assert_eq!(answer.status, 422, "{pointer} {value}: {}", answer.text);
        assert_eq!(answer.code(), "validation_failed");
        assert_eq!(answer.faulty(), faulty, "{pointer} {value}");
        assert_eq!(snapshot(&self.app.pool).await, before, "{pointer} {value}");
    }

    async fn takes(&self, pointer: &str, value: Value) {
        let answer = self.post(pointer, &value).await;
        assert!(
            answer.status.is_success(),
            "{pointer} {value}: {}",
            answer.text
        );
    }
}

const TEMPLATE: &str = "action.send_template.template_id";
const VARIABLES: &str = "/action/send_template/variables";

#[tokio::test]
async fn a_template_that_the_store_cannot_send_is_refused() {
    let desk = Desk::open().await;
    let pointer = "/action/send_template/template_id";
    for id in [json!(999_999), json!(i64::MAX)] {
        desk.refuses(pointer, id, &[TEMPLATE]).await;
    }
    for id in [json!(0), json!(-1), json!("1"), json!(1.5), Value::Null] {
        desk.refuses(pointer, id, &[TEMPLATE]).await;
    }
    // One of another store, and one that the provider took back.
    let (store_id, key) = desk.app.another_store(None).await;
    let path = format!("/api/v1/stores/{store_id}/message-templates");
    let bearer = format!("Bearer {key}");
    let theirs = json!({ "name": "t", "language": "en", "body": "Hello {{first_name}}" });
    let headers = [("authorization", bearer.as_str())];
    let theirs = desk
        .app
        .send(http::Method::POST, &path, &headers, theirs.to_string())
        .await
        .expect(201);
    desk.refuses(pointer, theirs.json()["id"].clone(), &[TEMPLATE])
        .await;
    let paused = desk.app.template("paused", "Hello {{first_name}}").await;
    desk.takes(pointer, json!(paused)).await;
    sqlx::query("update message_templates set status = 'paused' where template_id = $1")
        .bind(paused)
        .execute(&desk.app.pool)
        .await
        .expect("ours");
    desk.refuses(pointer, json!(paused), &[TEMPLATE]).await;
    desk.app.stop().await;
}

#[tokio::test]
async fn variables_that_the_template_lacks_or_that_lack_a_source_are_named() {
    let desk = Desk::open().await;
    let missing = "action.send_template.variables.first_name";
    let unknown = "action.send_template.variables.nickname";
    let nickname = json!({ "nickname": "/customer/first_name" });
    let both = json!({ "first_name": "=Ada", "nickname": "=Ada" });
    desk.refuses(VARIABLES, json!({}), &[missing]).await;
    desk.refuses(VARIABLES, Value::Null, &[missing]).await;
    desk.refuses(VARIABLES, nickname, &[missing, unknown]).await;
    desk.refuses(VARIABLES, both, &[unknown]).await;
    desk.refuses(
        VARIABLES,
        json!(["first_name"]),
        &["action.send_template.variables"],
    )
    .await;
    desk.app.stop().await;
}

#[tokio::test]
async fn a_pointer_that_can_lead_to_no_value_is_refused() {
    let desk = Desk::open().await;
    let faulty = ["action.send_template.variables.first_name"];
    for text in [
        "",
        "/",
        "customer/first_name",
        "#/customer",
        "/customer",
        "/tags",
        "/metadata",
        "/line_items",
        "/line_items/first",
        "/line_items/01/sku",
        "/line_items/-1/sku",
        "/customer/nickname",
        "/customer/first_name/0",
        "/Customer/first_name",
        "/a~2b",
        "/a~",
        "/status ",
        "$.customer",
        "{{customer}}",
    ] {
        desk.refuses(VARIABLES, json!({ "first_name": text }), &faulty)
            .await;
    }
    let long = format!("/metadata/{}", "k".repeat(600));
    for value in [
        json!(long),
        json!(5),
        json!(true),
        json!(null),
        json!(["/status"]),
    ] {
        desk.refuses(VARIABLES, json!({ "first_name": value }), &faulty)
            .await;
    }
    for text in [
        "/status",
        "/external_id",
        "/customer/first_name",
        "/tags/0",
        "/line_items/0/sku",
        "/metadata/any/depth/0",
        "/metadata/a~1b~0",
        "/total_price",
        "/version",
        "/id",
    ] {
        desk.takes(VARIABLES, json!({ "first_name": text })).await;
    }
    desk.app.stop().await;
}

#[tokio::test]
async fn a_literal_stands_behind_an_equals_sign_and_is_no_longer_than_a_value() {
    let desk = Desk::open().await;
    let faulty = ["action.send_template.variables.first_name"];
    for text in ["=", "=Hello", "==", "=/status", "=  ", "=été\nnew line"] {
        desk.takes(VARIABLES, json!({ "first_name": text })).await;
    }
    desk.refuses(VARIABLES, json!({ "first_name": "Hello" }), &faulty)
        .await;
    let longest = format!("={}", "é".repeat(1_024));
    desk.takes(VARIABLES, json!({ "first_name": longest }))
        .await;
    let longer = format!("={}", "é".repeat(1_025));
    desk.refuses(VARIABLES, json!({ "first_name": longer }), &faulty)
        .await;
    desk.app.stop().await;
}

#[tokio::test]
async fn a_condition_on_what_a_record_never_has_or_is_refused() {
    let desk = Desk::open().await;
    for (when, faulty) in [
        (json!({ "state": "abandoned" }), "trigger.when.state"),
        (json!({ "": "abandoned" }), "trigger.when"),
        (json!({ "customer": "Ada" }), "trigger.when.customer"),
        (json!({ "line_items": [] }), "trigger.when.line_items"),
        (json!({ "metadata": {} }), "trigger.when.metadata"),
        (json!({ "status": "lost" }), "trigger.when.status"),
        (
            json!({ "status": ["abandoned", "lost"] }),
            "trigger.when.status.1",
        ),
        (json!({ "status": [] }), "trigger.when.status"),
        (json!({ "status": null }), "trigger.when.status"),
        (json!({ "status": {} }), "trigger.when.status"),
        (json!({ "status": true }), "trigger.when.status"),
        (
            json!({ "status": [["abandoned"]] }),
            "trigger.when.status.0",
        ),
        (json!({ "total_price": "much" }), "trigger.when.total_price"),
        (json!({ "total_price": true }), "trigger.when.total_price"),
        (json!({ "currency": "EURO" }), "trigger.when.currency"),
        (
            json!({ "abandoned_at": "yesterday" }),
            "trigger.when.abandoned_at",
        ),
        (json!({ "tags": 5 }), "trigger.when.tags"),
        (json!({ "tags": "t".repeat(1_025) }), "trigger.when.tags"),
        (json!({ "tags": vec!["t"; 51] }), "trigger.when.tags"),
        (json!([]), "trigger.when"),
        (json!("abandoned"), "trigger.when"),
    ] {
        desk.refuses("/trigger/when", when, &[faulty]).await;
    }
    let several = json!({ "state": 1, "status": ["lost", "found"], "tags": false });
    let faulty = [
        "trigger.when.state",
        "trigger.when.status.0",
        "trigger.when.status.1",
        "trigger.when.tags",
    ];
    desk.refuses("/trigger/when", several, &faulty).await;
    let many: serde_json::Map<String, Value> =
        (0..21).map(|n| (format!("m{n}"), json!(1))).collect();
    desk.refuses("/trigger/when", json!(many), &["trigger.when"])
        .await;
    for when in [
        json!({ "status": ["abandoned", "expired"] }),
        json!({ "tags": vec!["t"; 50] }),
        json!({ "tags": "t".repeat(1_024) }),
        json!({ "total_price": 49.9, "currency": [null, "EUR"] }),
        json!({ "external_id": "B-1", "version": 3 }),
        json!({ "abandoned_at": "2026-01-15T10:30:00+01:00" }),
    ] {
        desk.takes("/trigger/when", when).await;
    }
    desk.app.stop().await;
}

#[tokio::test]
async fn delays_and_cooldowns_have_bounds() {
    let desk = Desk::open().await;
    for delay in [
        json!(-1),
        json!(2_592_001),
        json!(1.5),
        json!("60"),
        json!(true),
        json!([60]),
        json!(1e300),
    ] {
        desk.refuses("/delay_seconds", delay, &["delay_seconds"])
            .await;
    }
    for delay in [json!(0), json!(2_592_000), json!(60.0)] {
        desk.takes("/delay_seconds", delay).await;
    }
    let inner = "reentry.cooldown_seconds";
    for seconds in [
        json!(0),
        json!(-1),
        json!(31_622_401),
        json!("60"),
        Value::Null,
    ] {
        desk.refuses("/reentry", json!({ "cooldown_seconds": seconds }), &[inner])
            .await;
    }
    for seconds in [1, 31_622_400] {
        desk.takes("/reentry", json!({ "cooldown_seconds": seconds }))
            .await;
    }
    for reentry in [
        json!("always"),
        json!(""),
        json!(60),
        json!(false),
        json!([]),
    ] {
        desk.refuses("/reentry", reentry, &["reentry"]).await;
    }
    desk.refuses(
        "/reentry",
        json!({ "cooldown": 60 }),
        &["reentry.cooldown", inner],
    )
    .await;
    desk.app.stop().await;
}

#[tokio::test]
async fn there_is_just_one_trigger() {
    let mut desk = Desk::open().await;
    desk.body["action"]["send_template"]["variables"] = json!({ "first_name": "=Ada" });
    for (trigger, faulty) in [
        (json!({}), vec!["trigger.resource"]),
        (json!({ "when": {} }), vec!["trigger.resource"]),
        (
            json!({ "resource": null, "webhook": null }),
            vec!["trigger.resource"],
        ),
        (
            json!({ "resource": "checkouts", "webhook": true }),
            vec!["trigger.webhook"],
        ),
        (
            json!({ "webhook": true, "when": { "status": "abandoned" } }),
            vec!["trigger.when"],
        ),
        (json!({ "webhook": true, "when": {} }), vec!["trigger.when"]),
        (json!({ "webhook": false }), vec!["trigger.webhook"]),
        (json!({ "webhook": "yes" }), vec!["trigger.webhook"]),
        (json!({ "resource": "baskets" }), vec!["trigger.resource"]),
        (json!({ "resource": "checkout" }), vec!["trigger.resource"]),
        (json!({ "resource": 1 }), vec!["trigger.resource"]),
        (
            json!({ "resource": "checkouts", "event": "created" }),
            vec!["trigger.event"],
        ),
        (json!("checkouts"), vec!["trigger"]),
        (json!([]), vec!["trigger"]),
        (Value::Null, vec!["trigger"]),
    ] {
        desk.refuses("/trigger", trigger, &faulty).await;
    }
    desk.app.stop().await;
}

#[tokio::test]
async fn names_states_and_unknown_members_are_refused_at_every_depth() {
    let desk = Desk::open().await;
    for (pointer, value, faulty) in [
        ("/external_id", json!(""), "external_id"),
        ("/external_id", json!("e".repeat(256)), "external_id"),
        ("/external_id", json!(5), "external_id"),
        ("/external_id", Value::Null, "external_id"),
        ("/name", json!(""), "name"),
        ("/name", json!("  "), "name"),
        ("/name", json!("n".repeat(256)), "name"),
        ("/name", json!("nul\0"), "name"),
        ("/status", json!("off"), "status"),
        ("/status", json!(true), "status"),
        ("/action", Value::Null, "action"),
        ("/action", json!({}), "action.send_template"),
        ("/action", json!([]), "action"),
        ("/action/send_email", json!({}), "action.send_email"),
        (
            "/action/send_template/language",
            json!("en"),
            "action.send_template.language",
        ),
        ("/enabled", json!(true), "enabled"),
    ] {
        desk.refuses(pointer, value, &[faulty]).await;
    }
    let long = "n".repeat(255);
    desk.takes("/name", json!(long)).await;
    let nothing = desk.app.post("automations", &json!({})).await.expect(422);
    assert_eq!(nothing.faulty(), ["action", "external_id", "trigger"]);
    let list = desk.app.post("automations", &json!([desk.body])).await;
    list.expect(422);
    desk.app.stop().await;
}

#[tokio::test]
async fn all_faults_are_named_at_once() {
    let desk = Desk::open().await;
    let body = json!({
        "external_id": "", "status": "off", "delay_seconds": -1, "reentry": "always", "x": 1,
        "trigger": { "resource": "checkouts", "when": { "state": 1 } },
        "action": { "send_template": { "template_id": 0, "variables": { "v": "/nowhere" } } },
    });
    let answer = desk.app.post("automations", &body).await.expect(422);
    let faulty = [
        "action.send_template.template_id",
        "action.send_template.variables.v",
        "delay_seconds",
        "external_id",
        "reentry",
        "status",
        "trigger.when.state",
        "x",
    ];
    assert_eq!(answer.faulty(), faulty);
    desk.app.stop().await;
}

#[tokio::test]
async fn sources_of_a_webhook_lead_into_what_it_is_called_with() {
    let app = App::start().await;
    let id = app.template("hello", "Hello {{first_name}} {{url}}").await;
    let with = |variables: Value| {
        let mut body = on_call("a", id);
        body["action"]["send_template"]["variables"] = variables;
        body
    };
    for source in [
        "/status",
        "/customer/first_name",
        "/variables",
        "/variables/a/b",
        "first_name",
    ] {
        let body = with(json!({ "first_name": source }));
        let answer = app.post("automations", &body).await.expect(422);
        let faulty = ["action.send_template.variables.first_name"];
        assert_eq!(answer.faulty(), faulty, "{source}");
    }
    let body = with(json!({ "nickname": "=Ada" }));
    let answer = app.post("automations", &body).await.expect(422);
    assert_eq!(answer.faulty(), ["action.send_template.variables.nickname"]);
    for source in [
        "/phone_number",
        "/external_id",
        "/variables/anything",
        "=Ada",
    ] {
        app.automate(&with(json!({ "first_name": source }))).await;
    }
    // What has no source is taken from the call.
    app.automate(&with(json!({}))).await;
    app.stop().await;
}
