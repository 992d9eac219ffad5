//! PATCH: a JSON merge patch over the mutable members.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::{Kind, content_of, kinds};
use crate::support::rows::{events_of, snapshot};

fn patchable() -> impl Iterator<Item = (Kind, Value)> {
    kinds().into_iter().filter_map(|mut kind| {
        let patch = kind.patch.take()?;
        Some((kind, patch))
    })
}

#[test]
fn every_member_is_either_mutable_or_not_where_there_is_a_patch() {
    for (kind, _) in patchable() {
        let mut named: Vec<&str> = [kind.mutable, kind.immutable, &["source_updated_at"]].concat();
        let mut members = kind.members();
        named.sort_unstable();
        members.sort();
        assert_eq!(named, members, "{}", kind.path);
    }
}

#[tokio::test]
async fn each_mutable_member_changes_alone() {
    let app = App::start().await;
    for (kind, patch) in patchable() {
        for name in kind.mutable {
            let what = format!("{}.{name}", kind.path);
            let mut expected = app
                .post(kind.path, &kind.first(name))
                .await
                .expect(201)
                .json();
            let body = json!({ *name: patch[name] });
            let patched = app.patch(&kind.one(name), &body).await.expect(200);
            assert_eq!(
                (patched.outcome(), patched.header("etag")),
                ("updated", "\"2\""),
                "{what}"
            );
            expected[name] = patch[name].clone();
            expected["version"] = json!(2);
            expected["updated_at"] = patched.json()["updated_at"].clone();
            assert_eq!(patched.json(), expected, "{what}");
            assert_eq!(events_of(&app.pool, &expected).await.len(), 2);
            let before = snapshot(&app.pool).await;
            let again = app.patch(&kind.one(name), &body).await.expect(200);
            assert_eq!(
                (again.outcome(), &again.text),
                ("unchanged", &patched.text),
                "{what}"
            );
            assert_eq!(snapshot(&app.pool).await, before, "{what}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn null_clears_a_member_unless_it_can_not_be_null() {
    let app = App::start().await;
    for (kind, _) in patchable() {
        let bare = app
            .post(kind.path, &kind.least("bare"))
            .await
            .expect(201)
            .json();
        let schema = kind.patch_schema();
        for name in kind.mutable {
            let what = format!("{}.{name}", kind.path);
            app.post(kind.path, &kind.first(name)).await.expect(201);
            let answer = app.patch(&kind.one(name), &json!({ *name: null })).await;
            let property = &schema["properties"][name];
            let nullable = property.to_string().contains(r#""type":"null""#);
            if nullable {
                let answer = answer.expect(200);
                assert_eq!(answer.outcome(), "updated", "{what}");
                assert_eq!(answer.json()[name], bare[name], "{what}");
            } else {
                assert_eq!(answer.expect(422).faulty(), [*name], "{what}");
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn all_mutable_members_change_at_once_and_an_empty_patch_nothing() {
    let app = App::start().await;
    for (kind, patch) in patchable() {
        app.post(kind.path, &kind.first("P")).await.expect(201);
        let path = app.path(&kind.one("P"));
        let merge = [(
            "content-type",
            "application/merge-patch+json; charset=utf-8",
        )];
        let patched = app
            .send(Method::PATCH, &path, &merge, patch.to_string())
            .await
            .expect(200);
        assert_eq!(patched.json()["version"], 2);
        let content = content_of(&patched.json());
        for name in kind.mutable {
            assert_eq!(content[*name], patch[name]);
        }
        let before = snapshot(&app.pool).await;
        let empty = app.patch(&kind.one("P"), &json!({})).await.expect(200);
        assert_eq!((empty.outcome(), &empty.text), ("unchanged", &patched.text));
        assert_eq!(snapshot(&app.pool).await, before);
        // A POST after a PATCH is no replay: it replaces again.
        let posted = app.post(kind.path, &kind.first("P")).await.expect(200);
        assert_eq!(
            (posted.outcome(), &posted.json()["version"]),
            ("updated", &json!(3))
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn what_a_patch_can_not_change_is_refused_by_name() {
    let app = App::start().await;
    for (kind, patch) in patchable() {
        app.post(kind.path, &kind.first("P")).await.expect(201);
        let before = snapshot(&app.pool).await;
        let one = kind.one("P");
        for name in kind.immutable {
            for value in [
                kind.examples[1][name].clone(),
                kind.first("P")[name].clone(),
            ] {
                let answer = app.patch(&one, &json!({ *name: value })).await.expect(422);
                assert_eq!(answer.code(), "field_not_mutable", "{}.{name}", kind.path);
                assert_eq!(answer.faulty(), [*name]);
            }
        }
        for name in ["nonsense", "id", "version", "created_at"] {
            let answer = app.patch(&one, &json!({ name: 1 })).await.expect(422);
            assert_eq!(answer.code(), "validation_failed", "{}.{name}", kind.path);
            assert_eq!(answer.faulty(), [name]);
        }
        // One bad member spoils the good ones, and all bad ones are named.
        let mut mixed = patch.clone();
        mixed["external_id"] = json!("Q");
        mixed["nonsense"] = json!(1);
        let answer = app.patch(&one, &mixed).await.expect(422);
        assert_eq!(answer.faulty(), ["external_id", "nonsense"]);
        assert_eq!(answer.code(), "field_not_mutable");
        for wrong in [json!([]), json!(null), json!("x")] {
            assert_eq!(app.patch(&one, &wrong).await.expect(422).faulty(), [""]);
        }
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_patch_of_an_unknown_record_is_404_after_the_faults_of_its_body() {
    let app = App::start().await;
    for (kind, patch) in patchable() {
        let answer = app.patch(&kind.one("nobody"), &patch).await.expect(404);
        assert_eq!(answer.code(), "not_found");
        app.patch(&kind.one("nobody"), &json!({})).await.expect(404);
        app.patch(&kind.one("nobody"), &json!({"nonsense": 1}))
            .await
            .expect(422);
        // Too long to be a key at all.
        let long = "x".repeat(300);
        app.patch(&kind.one(&long), &patch).await.expect(404);
        app.patch(&kind.one(&long), &json!({"nonsense": 1}))
            .await
            .expect(422);
        assert_eq!(app.count(kind.path).await, 0);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_resource_without_patch_answers_405_and_what_it_takes() {
    let app = App::start().await;
    for kind in kinds().into_iter().filter(|kind| kind.patch.is_none()) {
        assert_eq!(kind.mutable, [""; 0], "{}", kind.path);
        app.post(kind.path, &kind.first("P")).await.expect(201);
        let answer = app.patch(&kind.one("P"), &json!({})).await.expect(405);
        assert_eq!(answer.code(), "method_not_allowed");
        let allow = answer.header("allow");
        assert!(allow.contains("GET") && !allow.contains("PATCH"), "{allow}");
    }
    app.stop().await;
}
