//! The lists that say what automations did, what they did not do, and why.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout, on_call, on_change, outcome};
use crate::support::messaging::PHONE;

#[tokio::test]
async fn runs_are_listed_by_automation_and_by_record() {
    let app = App::start().await;
    let id = app.greeting().await;
    for name in ["a", "b"] {
        let mut body = on_change(name, "checkouts", id);
        body["reentry"] = json!("once_per_record");
        app.automate(&body).await;
    }
    for key in ["A", "B"] {
        app.post("checkouts", &checkout(key, "abandoned"))
            .await
            .expect(201);
    }
    app.at_rest().await;
    app.patch("checkouts/A", &json!({ "tags": ["vip"] }))
        .await
        .expect(200);
    app.at_rest().await;
    let told = |runs: &[Value]| -> Vec<String> {
        let one = |run: &Value| {
            let names = ["automation", "external_id"].map(|name| run[name].as_str());
            let [automation, record] = names.map(|name| name.expect("a name"));
            format!("{automation} {record} {}", outcome(run))
        };
        runs.iter().map(one).collect()
    };
    assert_eq!(
        told(&app.runs("a").await),
        ["a A sent", "a B sent", "a A skipped reentry"]
    );
    let mut of_record = told(&app.runs_at("checkouts/A/runs").await);
    of_record.sort();
    assert_eq!(
        of_record,
        [
            "a A sent",
            "a A skipped reentry",
            "b A sent",
            "b A skipped reentry"
        ]
    );
    assert_eq!(app.runs_at("checkouts/B/runs").await.len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn runs_are_narrowed_to_a_status_and_read_page_by_page() {
    let app = App::start().await;
    let id = app.greeting().await;
    let mut body = on_change("a", "checkouts", id);
    body["reentry"] = json!("once_per_record");
    app.automate(&body).await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    for n in 0..6 {
        app.at_rest().await;
        app.patch("checkouts/A", &json!({ "tags": [format!("t-{n}")] }))
            .await
            .expect(200);
    }
    app.at_rest().await;
    for list in ["automations/a/runs", "checkouts/A/runs"] {
        let all = app.runs_at(list).await;
        assert_eq!(all.len(), 7);
        for (status, count) in [("scheduled", 0), ("sent", 1), ("skipped", 6), ("failed", 0)] {
            let path = format!("{list}?status={status}");
            let page = app.get(&path).await.expect(200).json();
            let data = page["data"].as_array().expect("a list");
            assert_eq!(data.len(), count, "{path}");
            assert!(data.iter().all(|run| run["status"] == status));
        }
        let (mut read, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("{list}?status=skipped&limit=4{cursor}");
            let page = app.get(&path).await.expect(200).json();
            read.extend(page["data"].as_array().expect("a list").iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else {
                break;
            };
            // A cursor counts for the list and the filter that it is of.
            for other in ["status=sent&", ""] {
                let path = format!("{list}?{other}limit=4&cursor={next}");
                assert_eq!(app.get(&path).await.expect(400).code(), "cursor_invalid");
            }
            cursor = format!("&cursor={next}");
        }
        let skipped: Vec<Value> = all
            .into_iter()
            .filter(|run| run["status"] == "skipped")
            .collect();
        assert_eq!(read, skipped);
        for query in [
            "status=done",
            "status=",
            "limit=0",
            "limit=201",
            "automation=a",
        ] {
            let answer = app.get(&format!("{list}?{query}")).await.expect(400);
            assert_eq!(answer.code(), "query_invalid", "{query}");
        }
        let answer = app.get(&format!("{list}?cursor=x")).await.expect(400);
        assert_eq!(answer.code(), "cursor_invalid");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_unknown_has_no_runs() {
    let app = App::start().await;
    let (other, key) = app.another_store(None).await;
    app.automate(&on_change("a", "checkouts", app.greeting().await))
        .await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    for path in [
        "automations/b/runs",
        "automations/%00/runs",
        "checkouts/B/runs",
        "orders/A/runs",
        "checkouts/%00/runs",
        "customers/A/runs",
        "customers/%2B33612345679/runs",
        "shipments/A/runs",
        "checkouts/bulk/runs",
        "orders/bulk/runs",
    ] {
        assert_eq!(
            app.get(path).await.expect(404).code(),
            "not_found",
            "{path}"
        );
    }
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    for rest in ["automations/a/runs", "checkouts/A/runs", "automations/a"] {
        let path = format!("/api/v1/stores/{other}/{rest}");
        app.send(http::Method::GET, &path, &headers, "")
            .await
            .expect(404);
    }
    app.stop().await;
}

#[tokio::test]
async fn records_with_odd_names_and_people_without_one_have_their_runs() {
    let app = App::start().await;
    let id = app.greeting().await;
    app.automate(&on_change("a", "checkouts", id)).await;
    app.automate(&on_change("people", "customers", id)).await;
    for (name, segment) in [
        ("bulk", "bulk"),
        ("runs", "runs"),
        ("a/b c", "a%2Fb%20c"),
        ("é%", "%C3%A9%25"),
    ] {
        app.post("checkouts", &checkout(name, "abandoned"))
            .await
            .expect(201);
        app.at_rest().await;
        let runs = app.runs_at(&format!("checkouts/{segment}/runs")).await;
        assert_eq!(runs.len(), 1, "{name}");
        assert_eq!(runs[0]["external_id"], name);
    }
    // The person of these checkouts is known by their number alone.
    let runs = app.runs_at("customers/%2B33612345678/runs").await;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0]["external_id"], Value::Null);
    assert_eq!(runs[0]["resource"], "customers");
    // A name that came later is told.
    let named = json!({ "external_id": "C", "phone": PHONE, "first_name": "Ada" });
    app.post("customers", &named).await.expect(200);
    let runs = app.runs_at("customers/C/runs").await;
    assert_eq!(runs[0]["external_id"], "C");
    app.stop().await;
}

#[tokio::test]
async fn runs_of_a_webhook_have_no_record_and_the_callers_own_name() {
    let app = App::start().await;
    let saved = app.automate(&on_call("call", app.greeting().await)).await;
    let body = json!({ "phone_number": PHONE, "external_id": "occasion 1" });
    let called = app.call(&saved, &body).await.expect(200).json();
    app.at_rest().await;
    let runs = app.runs("call").await;
    let run = &runs[0];
    let expected = json!({
        "run_id": called["run_id"], "automation": "call", "resource": null, "record_id": null,
        "external_id": "occasion 1", "status": "sent", "reason": null, "detail": null,
        "message_id": run["message_id"], "due_at": run["due_at"],
        "created_at": run["created_at"], "updated_at": run["updated_at"],
    });
    assert_eq!(runs, [expected]);
    app.message_becomes(&run["message_id"], "delivered").await;
    app.stop().await;
}
