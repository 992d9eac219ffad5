//! Bulk as one JSON document.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::{keyed, kinds, with, without};
use crate::support::rows::{events_of, snapshot};

#[tokio::test]
async fn each_item_has_its_own_outcome_in_the_order_of_the_request() {
    let app = App::start().await;
    for kind in kinds() {
        let time = |body: &Value, time: &str| with(body, "source_updated_at", time.into());
        let known = app
            .post(kind.path, &kind.first("same"))
            .await
            .expect(201)
            .json();
        app.post(kind.path, &kind.first("change")).await.expect(201);
        let stored = time(&kind.first("late"), "2026-02-02T00:00:00Z");
        app.post(kind.path, &stored).await.expect(201);
        let (faulty, name) = kind.faulty("bad");
        let late = time(&kind.second("late"), "2026-02-01T00:00:00Z");
        let items = json!({"items": [
            kind.second("change"), faulty, kind.first("new"), late, kind.first("same"), 7,
        ]});
        let answer = app.post(&kind.one("bulk"), &items).await.expect(200).json();
        let summary = json!({"created": 1, "updated": 1, "unchanged": 1, "stale": 1, "failed": 2});
        assert_eq!(answer["summary"], summary, "{}", kind.path);
        let results = answer["results"].as_array().expect("a list");
        let seen: Vec<_> = results
            .iter()
            .map(|result| {
                let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
                (
                    result["index"].as_u64(),
                    text("external_id"),
                    result["status"].as_u64(),
                    text("outcome"),
                )
            })
            .collect();
        let expected = [
            (0, "change", 200, "updated"),
            (1, "bad", 422, "failed"),
            (2, "new", 201, "created"),
            (3, "late", 200, "stale"),
            (4, "same", 200, "unchanged"),
            (5, "", 422, "failed"),
        ]
        .map(|(index, key, status, outcome)| {
            (
                Some(index),
                key.to_owned(),
                Some(status),
                outcome.to_owned(),
            )
        });
        assert_eq!(seen, expected, "{}", kind.path);
        assert_eq!(results[4]["id"], known["id"]);
        assert_eq!(results[1]["id"], Value::Null);
        assert_eq!(results[5]["external_id"], Value::Null);
        // As a single write would have answered.
        let single = app
            .post(kind.path, &kind.faulty("bad").0)
            .await
            .expect(422)
            .json();
        assert_eq!(results[1]["code"], single["code"]);
        assert_eq!(results[1]["errors"], single["errors"]);
        assert!(results[1]["errors"][&name].is_array());
        assert!(results[5]["errors"][""].is_array());
        assert!(results[0].get("code").is_none() && results[0].get("errors").is_none());
        let new = app.get(&kind.one("new")).await.expect(200).json();
        assert_eq!(new["id"], results[2]["id"]);
        app.get(&kind.one("bad")).await.expect(404);
        // All of it again: nothing new, except that what failed fails again.
        let before = snapshot(&app.pool).await;
        let again = app.post(&kind.one("bulk"), &items).await.expect(200).json();
        let summary = json!({"created": 0, "updated": 0, "unchanged": 3, "stale": 1, "failed": 2});
        assert_eq!(again["summary"], summary);
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn the_same_key_twice_is_applied_in_order() {
    let app = App::start().await;
    for kind in kinds() {
        let (first, second) = (kind.first("K"), kind.second("K"));
        let items = json!({"items": [first, second, second, first, kind.first("Z"), second]});
        let answer = app.post(&kind.one("bulk"), &items).await.expect(200).json();
        let results = answer["results"].as_array().expect("a list");
        let outcomes: Vec<_> = results
            .iter()
            .map(|one| one["outcome"].as_str().expect("text"))
            .collect();
        assert_eq!(
            outcomes,
            [
                "created",
                "updated",
                "unchanged",
                "updated",
                "created",
                "updated"
            ]
        );
        let stored = app.get(&kind.one("K")).await.expect(200).json();
        assert_eq!(stored["version"], 4);
        let versions: Vec<i64> = events_of(&app.pool, &stored)
            .await
            .iter()
            .map(|event| event.1)
            .collect();
        assert_eq!(versions, [1, 2, 3, 4], "{}", kind.path);
        let last = app.post(kind.path, &second).await.expect(200);
        assert_eq!(last.outcome(), "unchanged", "the last one won");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_document_takes_none_to_1000_items() {
    let app = App::start().await;
    for kind in kinds() {
        let bulk = kind.one("bulk");
        let none = app
            .post(&bulk, &json!({"items": []}))
            .await
            .expect(200)
            .json();
        let zero = json!({"created": 0, "updated": 0, "unchanged": 0, "stale": 0, "failed": 0});
        assert_eq!(none, json!({"summary": zero, "results": []}));
        let mut items: Vec<Value> = (0..1_001).map(|at| kind.first(&format!("B{at}"))).collect();
        let answer = app
            .post(&bulk, &json!({ "items": items }))
            .await
            .expect(422);
        assert_eq!(answer.faulty(), ["items"]);
        app.get(&kind.one("B0")).await.expect(404);
        items.truncate(1_000);
        let answer = app
            .post(&bulk, &json!({ "items": items }))
            .await
            .expect(200)
            .json();
        assert_eq!(answer["summary"]["created"], 1_000, "{}", kind.path);
        let again = app
            .post(&bulk, &json!({ "items": items }))
            .await
            .expect(200)
            .json();
        assert_eq!(again["summary"]["unchanged"], 1_000, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_document_of_another_shape_is_refused() {
    let app = App::start().await;
    for kind in kinds() {
        for (body, faulty) in [
            (json!([]), vec![""]),
            (json!({}), vec!["items"]),
            (json!({"items": null}), vec!["items"]),
            (json!({"items": {}}), vec!["items"]),
            (json!({"items": [], "nonsense": 1}), vec!["nonsense"]),
            (json!({"nonsense": 1}), vec!["items", "nonsense"]),
        ] {
            let answer = app.post(&kind.one("bulk"), &body).await.expect(422);
            assert_eq!(answer.faulty(), faulty, "{body}");
        }
        let path = app.path(&kind.one("bulk"));
        for body in ["{\"items\": [", "{\"items\": [], \"items\": []}", "x"] {
            let answer = app.send(Method::POST, &path, &[], body).await;
            answer.expect(400);
        }
        for query in ["atomic=1", "dry_run=yes", "results=failed", "nonsense=1"] {
            let path = format!("{}?{query}", kind.one("bulk"));
            let answer = app.post(&path, &json!({"items": []})).await.expect(400);
            assert_eq!(answer.code(), "query_invalid", "{query}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn atomic_is_all_or_nothing_and_names_every_fault() {
    let app = App::start().await;
    for kind in kinds() {
        let path = format!("{}?atomic=true", kind.one("bulk"));
        let (faulty, name) = kind.faulty("bad");
        let before = snapshot(&app.pool).await;
        let nonsense = with(&kind.first("worse"), "nonsense", json!(1));
        let items = json!({"items": [kind.first("A1"), faulty, kind.first("A2"), nonsense, []]});
        let answer = app.post(&path, &items).await.expect(422);
        assert_eq!(answer.code(), "validation_failed");
        let mut faults = answer.faulty();
        faults.sort();
        assert_eq!(
            faults,
            [
                format!("items.1.{name}"),
                "items.3.nonsense".into(),
                "items.4".into()
            ]
        );
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        let good = json!({"items": [kind.first("A1"), kind.first("A2"), kind.second("A1")]});
        let answer = app.post(&path, &good).await.expect(200).json();
        assert_eq!(answer["summary"]["created"], 2);
        assert_eq!(answer["summary"]["updated"], 1, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_dry_run_of_a_document_stores_nothing() {
    let app = App::start().await;
    for kind in kinds() {
        let known = app
            .post(kind.path, &kind.first("known"))
            .await
            .expect(201)
            .json();
        let before = snapshot(&app.pool).await;
        let path = format!("{}?dry_run=true", kind.one("bulk"));
        let (faulty, _) = kind.faulty("bad");
        let items =
            json!({"items": [kind.first("new"), kind.second("known"), faulty, kind.second("new")]});
        let dry = app.post(&path, &items).await.expect(200);
        assert_eq!(dry.header("keyfold-dry-run"), "true");
        let mut dry = dry.json();
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        assert_eq!(dry["results"][0]["id"], Value::Null);
        assert_eq!(
            dry["results"][3]["id"],
            Value::Null,
            "{}: it would be new as well",
            kind.path
        );
        assert_eq!(dry["results"][1]["id"], known["id"]);
        let mut real = app.post(&kind.one("bulk"), &items).await.expect(200).json();
        for answer in [&mut dry, &mut real] {
            for result in answer["results"].as_array_mut().expect("a list") {
                *result = without(result, "id");
            }
        }
        assert_eq!(dry, real, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_dry_run_that_is_atomic_names_every_fault_as_well() {
    let app = App::start().await;
    for kind in kinds() {
        let path = format!("{}?dry_run=true&atomic=true", kind.one("bulk"));
        let (faulty, name) = kind.faulty("bad");
        let answer = app
            .post(&path, &json!({"items": [faulty]}))
            .await
            .expect(422);
        assert_eq!(answer.faulty(), [format!("items.0.{name}")]);
        let good = json!({"items": [keyed(&kind.examples[0], "good")]});
        let answer = app.post(&path, &good).await.expect(200);
        assert_eq!(answer.json()["summary"]["created"], 1);
        assert_eq!(app.count(kind.path).await, 0);
    }
    app.stop().await;
}
