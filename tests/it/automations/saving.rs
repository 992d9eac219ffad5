//! Saving automations, reading them, deleting them.

use keyfold::automations::rules::MOST_AUTOMATIONS;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{on_call, on_change};
use crate::support::rows::snapshot;

/// One that says everything.
fn full(template_id: i64) -> Value {
    json!({
        "external_id": "recover-checkout", "name": "Recover a checkout", "status": "paused",
        "trigger": {
            "resource": "checkouts",
            "when": { "status": ["abandoned", "expired"], "tags": "vip", "currency": null },
        },
        "delay_seconds": 1_800, "reentry": { "cooldown_seconds": 86_400 },
        "action": { "send_template": {
            "template_id": template_id,
            "variables": { "first_name": "/customer/first_name", "shop": "=Tea" },
        } },
    })
}

async fn template(app: &App) -> i64 {
    app.template("hello", "Hello {{first_name}} from {{shop}}")
        .await
}

#[tokio::test]
async fn an_automation_is_created_then_unchanged_then_updated() {
    let app = App::start().await;
    let mut body = full(template(&app).await);
    let location = app.path("automations/recover-checkout");
    let made = app.post("automations", &body).await.expect(201);
    assert_eq!(made.outcome(), "created");
    assert_eq!(made.header("location"), location);
    let first = made.json();
    let mut expected = body.clone();
    expected["id"] = first["id"].clone();
    expected["store_id"] = json!(app.store_id);
    expected["webhook_id"] = Value::Null;
    expected["created_at"] = first["created_at"].clone();
    expected["updated_at"] = first["created_at"].clone();
    assert_eq!(first, expected);

    let before = snapshot(&app.pool).await;
    let again = app.post("automations", &body).await.expect(200);
    assert_eq!(
        (again.outcome(), again.json()),
        ("unchanged", first.clone())
    );
    assert_eq!(again.header("location"), "", "it is not made");
    assert_eq!(snapshot(&app.pool).await, before, "nothing is written");

    for (name, value) in [
        ("name", json!("Another name")),
        ("status", json!("active")),
        ("delay_seconds", json!(60)),
        ("reentry", json!("every_change")),
        ("trigger", json!({ "resource": "checkouts" })),
        (
            "trigger",
            json!({ "resource": "orders", "when": { "tags": "vip" } }),
        ),
    ] {
        body[name] = value;
        let changed = app.post("automations", &body).await.expect(200);
        assert_eq!(changed.outcome(), "updated", "{name}");
        let changed = changed.json();
        assert_eq!(changed[name], body[name]);
        assert_eq!(changed["id"], first["id"], "it is still the same one");
        assert_eq!(changed["created_at"], first["created_at"]);
        assert!(App::time(&changed["updated_at"]) > App::time(&first["updated_at"]));
    }
    assert_eq!(app.count("automations").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn what_is_left_out_has_its_default() {
    let app = App::start().await;
    let id = app.greeting().await;
    let least = json!({
        "external_id": "least", "trigger": { "resource": "orders" },
        "action": { "send_template": { "template_id": id } },
    });
    let saved = app.automate(&least).await;
    let all = json!({
        "external_id": "least", "name": "least", "status": "active",
        "trigger": { "resource": "orders" }, "delay_seconds": 0, "reentry": "once_per_record",
        "action": { "send_template": { "template_id": id, "variables": {} } },
    });
    for (name, value) in all.as_object().expect("an object") {
        assert_eq!(&saved[name], value, "{name}");
    }
    let mut nulls = least.clone();
    for name in ["name", "status", "delay_seconds", "reentry"] {
        nulls[name] = Value::Null;
    }
    nulls["trigger"]["when"] = Value::Null;
    nulls["trigger"]["webhook"] = Value::Null;
    for same in [all, nulls] {
        let answer = app.post("automations", &same).await.expect(200);
        assert_eq!(answer.outcome(), "unchanged");
    }
    // An empty condition is none.
    let mut empty = least;
    empty["trigger"]["when"] = json!({});
    let answer = app.post("automations", &empty).await.expect(200);
    assert_eq!(answer.outcome(), "unchanged");
    app.stop().await;
}

#[tokio::test]
async fn what_is_answered_of_a_body_can_be_posted_back_and_changes_nothing() {
    let app = App::start().await;
    let (full, greeting) = (full(template(&app).await), app.greeting().await);
    for body in [
        full,
        on_change("change", "customers", greeting),
        on_call("call", greeting),
    ] {
        let saved = app.automate(&body).await;
        let before = snapshot(&app.pool).await;
        // Ids and times are the service's own, and unknown in a body like everywhere.
        let own = ["created_at", "id", "store_id", "updated_at", "webhook_id"];
        let refused = app.post("automations", &saved).await.expect(422);
        assert_eq!(refused.faulty(), own);
        let mut back = saved.clone();
        let members = back.as_object_mut().expect("an object");
        members.retain(|name, _| !own.contains(&name.as_str()));
        let again = app.post("automations", &back).await.expect(200);
        assert_eq!((again.outcome(), again.json()), ("unchanged", saved));
        assert_eq!(snapshot(&app.pool).await, before);
    }
    app.stop().await;
}

#[tokio::test]
async fn one_automation_is_read_by_its_name_whatever_that_is() {
    let app = App::start().await;
    let id = app.greeting().await;
    for (name, segment) in [
        ("plain", "plain"),
        ("with space/and slash", "with%20space%2Fand%20slash"),
        ("runs", "runs"),
        ("été", "%C3%A9t%C3%A9"),
    ] {
        let saved = app.automate(&on_change(name, "orders", id)).await;
        let path = format!("automations/{segment}");
        assert_eq!(app.get(&path).await.expect(200).json(), saved, "{name}");
        let runs = app.get(&format!("{path}/runs")).await.expect(200).json();
        assert_eq!(runs["data"], json!([]));
    }
    for unknown in ["other", "Plain", "%00"] {
        for path in [
            format!("automations/{unknown}"),
            format!("automations/{unknown}/runs"),
        ] {
            let answer = app.get(&path).await.expect(404);
            assert_eq!(answer.code(), "not_found", "{path}");
        }
        let answer = app.delete(&format!("automations/{unknown}")).await;
        assert_eq!(answer.expect(404).code(), "not_found");
    }
    app.stop().await;
}

#[tokio::test]
async fn automations_are_listed_page_by_page_in_the_order_of_their_making() {
    let app = App::start().await;
    let id = app.greeting().await;
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(
            app.automate(&on_change(&format!("a-{n}"), "orders", id))
                .await,
        );
    }
    let (mut listed, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = app.get(&format!("automations?limit=2{cursor}")).await;
        let page = page.expect(200).json();
        let data = page["data"].as_array().expect("a list");
        listed.extend(data.iter().cloned());
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((listed, pages), (all.clone(), 3));
    let page = app.get("automations").await.expect(200).json();
    assert_eq!(page["data"], json!(all));
    for (query, code) in [
        ("?limit=0", "query_invalid"),
        ("?limit=201", "query_invalid"),
        ("?status=active", "query_invalid"),
        ("?cursor=nonsense", "cursor_invalid"),
    ] {
        let answer = app.get(&format!("automations{query}")).await.expect(400);
        assert_eq!(answer.code(), code, "{query}");
    }
    // A cursor of another list is none of this one.
    let other = app.get("automations?limit=2").await.expect(200).json();
    let other = other["next_cursor"].as_str().expect("there is more");
    let answer = app
        .get(&format!("automations/a-0/runs?cursor={other}"))
        .await;
    answer.expect(400);
    app.stop().await;
}

#[tokio::test]
async fn a_deleted_automation_is_gone_and_its_name_is_free() {
    let app = App::start().await;
    let id = app.greeting().await;
    let first = app.automate(&on_change("a", "orders", id)).await;
    app.delete("automations/a").await.expect(204);
    app.get("automations/a").await.expect(404);
    app.delete("automations/a").await.expect(404);
    let page = app.get("automations").await.expect(200).json();
    assert_eq!(page["data"], json!([]));
    let again = app.post("automations", &on_change("a", "orders", id)).await;
    assert_ne!(again.expect(201).json()["id"], first["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_store_without_automations_of_records_has_nobody_who_follows_its_events() {
    let app = App::start().await;
    let id = app.greeting().await;
    app.automate(&on_call("call", id)).await;
    assert_eq!(app.count("event_consumers").await, 0);
    app.automate(&on_change("a", "orders", id)).await;
    app.automate(&on_change("b", "orders", id)).await;
    assert_eq!(app.count("event_consumers").await, 1);
    app.delete("automations/a").await.expect(204);
    assert_eq!(app.count("event_consumers").await, 1);
    // The last one becomes one of a webhook.
    app.automate(&on_call("b", id)).await;
    assert_eq!(app.count("event_consumers").await, 0);
    app.automate(&on_change("b", "orders", id)).await;
    app.delete("automations/b").await.expect(204);
    assert_eq!(app.count("event_consumers").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_store_has_at_most_200_automations_also_when_they_come_at_once() {
    let app = App::start().await;
    let id = app.greeting().await;
    let most = usize::try_from(MOST_AUTOMATIONS).expect("few");
    assert_eq!(most, 200);
    for n in 0..most - 4 {
        app.automate(&on_change(&format!("a-{n}"), "orders", id))
            .await;
    }
    let last = (0..16).map(|n| {
        let body = on_change(&format!("last-{n}"), "orders", id);
        let app = &app;
        async move { app.post("automations", &body).await }
    });
    let answers = futures_util::future::join_all(last).await;
    let (made, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (4, 12));
    for answer in refused {
        assert_eq!(answer.expect(422).faulty(), ["external_id"]);
    }
    assert_eq!(app.count("automations").await, MOST_AUTOMATIONS);
    // One that is there can still change, and a place that is free can be taken.
    app.post("automations", &on_change("a-0", "customers", id))
        .await
        .expect(200);
    app.delete("automations/a-1").await.expect(204);
    app.post("automations", &on_change("new", "orders", id))
        .await
        .expect(201);
    app.stop().await;
}

#[tokio::test]
async fn the_same_automation_saved_at_once_is_one() {
    let app = App::start().await;
    let id = app.greeting().await;
    for body in [on_change("a", "orders", id), on_call("b", id)] {
        let saves = (0..16).map(|_| app.post("automations", &body));
        let answers = futures_util::future::join_all(saves).await;
        let made = answers.iter().filter(|answer| answer.status == 201);
        assert_eq!(made.count(), 1);
        for answer in &answers {
            assert_eq!(answer.json(), answers[0].json());
        }
    }
    assert_eq!(app.count("automation_webhooks").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_webhook_keeps_its_id_as_long_as_it_is_one() {
    let app = App::start().await;
    let id = app.greeting().await;
    let first = app.automate(&on_call("a", id)).await;
    let webhook = first["webhook_id"].as_str().expect("an id").to_owned();
    let version = webhook.parse::<uuid::Uuid>().expect("a UUID");
    assert_eq!(version.get_version_num(), 4, "nobody can guess it");
    let mut renamed = on_call("a", id);
    renamed["name"] = json!("Renamed");
    assert_eq!(
        app.automate(&renamed).await["webhook_id"],
        first["webhook_id"]
    );
    let body = json!({ "phone_number": "+33612345678" });
    app.call(&first, &body).await.expect(200);
    let changed = app.automate(&on_change("a", "orders", id)).await;
    assert_eq!(changed["webhook_id"], Value::Null);
    app.call(&first, &body).await.expect(404);
    let back = app.automate(&on_call("a", id)).await;
    assert_ne!(back["webhook_id"], first["webhook_id"]);
    app.call(&first, &body).await.expect(404);
    app.delete("automations/a").await.expect(204);
    app.call(&back, &body).await.expect(404);
    assert_eq!(app.count("automation_webhooks").await, 0);
    app.stop().await;
}
