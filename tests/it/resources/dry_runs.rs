//! `?dry_run=true`: the same answer, nothing stored.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::{content_of, keyed, kinds, person};
use crate::support::rows::snapshot;

#[tokio::test]
async fn a_dry_run_of_a_new_record_answers_as_if_and_leaves_nothing() {
    let app = App::start().await;
    for kind in kinds() {
        let before = snapshot(&app.pool).await;
        let path = format!("{}?dry_run=true", kind.path);
        let dry = app.post(&path, &kind.first("D")).await.expect(201);
        assert_eq!(dry.header("keyfold-dry-run"), "true");
        assert_eq!((dry.outcome(), dry.header("etag")), ("created", "\"1\""));
        assert_eq!(dry.header("location"), "", "there is nothing to point at");
        assert_eq!(dry.json()["id"], Value::Null);
        if kind.has_customer {
            assert_eq!(
                dry.json()["customer"]["id"],
                Value::Null,
                "it would be new as well"
            );
        }
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        app.get(&kind.one("D")).await.expect(404);

        let real = app.post(kind.path, &kind.first("D")).await.expect(201);
        assert_eq!(real.header("keyfold-dry-run"), "");
        let (mut dry, mut real) = (content_of(&dry.json()), content_of(&real.json()));
        if kind.has_customer {
            let known = real["customer"]["id"].take();
            assert!(known.is_string());
            dry["customer"]["id"].take();
            // The next resource's dry run begins without that customer, too.
            let customer = real["customer"]["external_id"].as_str().expect("a key");
            app.delete(&person().one(customer)).await.expect(204);
        }
        assert_eq!(dry, real, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_dry_run_on_a_known_record_answers_every_outcome() {
    let app = App::start().await;
    for kind in kinds() {
        let key = "D";
        let known = keyed(&kind.examples[0], key);
        let stored = app.post(kind.path, &known).await.expect(201).json();
        let before = snapshot(&app.pool).await;
        let path = format!("{}?dry_run=true", kind.path);
        let mut late = kind.second(key);
        late["source_updated_at"] = json!("2001-01-01T00:00:00Z");
        for (body, outcome, version) in [
            (kind.second(key), "updated", 2),
            (known, "unchanged", 1),
            (late, "stale", 1),
        ] {
            let dry = app.post(&path, &body).await.expect(200);
            assert_eq!(
                (dry.outcome(), dry.header("keyfold-dry-run")),
                (outcome, "true")
            );
            assert_eq!(dry.json()["version"], version);
            assert_eq!(dry.json()["id"], stored["id"]);
        }
        let (faulty, name) = kind.faulty(key);
        assert_eq!(app.post(&path, &faulty).await.expect(422).faulty(), [name]);
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        assert_eq!(app.get(&kind.one(key)).await.json(), stored);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_dry_run_of_a_patch_changes_nothing() {
    let app = App::start().await;
    for kind in kinds() {
        let Some(patch) = &kind.patch else { continue };
        app.post(kind.path, &kind.first("D")).await.expect(201);
        let before = snapshot(&app.pool).await;
        let dry = app
            .patch(&kind.one("D?dry_run=true"), patch)
            .await
            .expect(200);
        assert_eq!(
            (dry.outcome(), dry.header("keyfold-dry-run")),
            ("updated", "true")
        );
        app.patch(&kind.one("nobody?dry_run=true"), patch)
            .await
            .expect(404);
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        let real = app.patch(&kind.one("D"), patch).await.expect(200);
        assert_eq!(content_of(&real.json()), content_of(&dry.json()));
        assert_eq!(dry.json()["id"], real.json()["id"]);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_mistyped_dry_run_is_refused_instead_of_written() {
    let app = App::start().await;
    for kind in kinds() {
        for query in [
            "dryrun=true",
            "dry_run=1",
            "dry_run=",
            "dry_run=true&dry_run=true",
        ] {
            let path = format!("{}?{query}", kind.path);
            let answer = app.post(&path, &kind.first("D")).await.expect(400);
            assert_eq!(answer.code(), "query_invalid", "{query}");
        }
        app.get(&kind.one("D")).await.expect(404);
        let path = format!("{}?dry_run=false", kind.path);
        app.post(&path, &kind.first("D")).await.expect(201);
    }
    app.stop().await;
}
