//! Member by member: none may be forgotten in reading, comparing, storing or answering.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::{Kind, assert_holds, kinds, person, with, without};

#[test]
fn the_examples_have_every_member_and_differ_in_each() {
    for kind in kinds() {
        let [first, second] = &kind.examples;
        for member in kind.members() {
            let (one, other) = (first.get(&member), second.get(&member));
            assert!(one.is_some() && other.is_some(), "{}.{member}", kind.path);
            assert_ne!(one, other, "{}.{member}", kind.path);
        }
        for example in &kind.examples {
            for name in example.as_object().expect("an object").keys() {
                assert!(kind.members().contains(name), "{}.{name}", kind.path);
            }
        }
        let Some(patch) = &kind.patch else { continue };
        let mut patched: Vec<&str> = patch
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let mut mutable = kind.mutable.to_vec();
        patched.sort_unstable();
        mutable.sort_unstable();
        assert_eq!(patched, mutable, "{}", kind.path);
        for name in mutable {
            assert_ne!(patch[name], first[name], "{}.{name}", kind.path);
        }
    }
}

/// What can be sent in a POST without being the key or the caller's own time.
fn contents(kind: &Kind) -> impl Iterator<Item = String> {
    let apart = ["external_id", "source_updated_at"];
    let members = kind.members().into_iter();
    members.filter(move |name| !apart.contains(&name.as_str()))
}

#[tokio::test]
async fn a_change_of_any_single_member_is_a_change() {
    let app = App::start().await;
    for kind in kinds() {
        for name in contents(&kind) {
            let what = format!("{}.{name}", kind.path);
            let base = kind.first(&name);
            let stored = app.post(kind.path, &base).await.expect(201).json();
            let body = with(&base, &name, kind.examples[1][&name].clone());
            let changed = app.post(kind.path, &body).await.expect(200);
            assert_eq!(
                (changed.outcome(), &changed.json()["version"]),
                ("updated", &json!(2)),
                "{what}"
            );
            assert_holds(&changed.json(), &body, &what);
            // Nothing else has moved.
            let mut expected = stored.clone();
            for moved in [name.as_str(), "version", "updated_at"] {
                expected[moved] = changed.json()[moved].clone();
            }
            assert_eq!(changed.json(), expected, "{what}");
            let found = app.get(&kind.one(&name)).await.expect(200);
            assert_eq!(found.text, changed.text, "{what}");
            let again = app.post(kind.path, &body).await.expect(200);
            assert_eq!(
                (again.outcome(), &again.text),
                ("unchanged", &changed.text),
                "{what}"
            );
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn leaving_a_member_out_is_a_change_and_null_means_left_out() {
    let app = App::start().await;
    for kind in kinds() {
        let required = kind.required();
        for name in contents(&kind).filter(|name| !required.contains(name)) {
            let what = format!("{}.{name}", kind.path);
            let base = kind.second(&name);
            let stored = app.post(kind.path, &base).await.expect(201).json();
            let left_out = app
                .post(kind.path, &without(&base, &name))
                .await
                .expect(200);
            let null = app.post(kind.path, &with(&base, &name, Value::Null)).await;
            if kind.kept_when_left_out.contains(&name.as_str()) {
                assert_eq!(
                    (left_out.outcome(), left_out.json()),
                    ("unchanged", stored),
                    "{what}"
                );
                assert_eq!(null.expect(422).faulty(), [name], "{what}");
            } else {
                assert_eq!(left_out.outcome(), "updated", "{what}");
                assert_ne!(left_out.json()[&name], stored[&name], "{what}");
                let null = null.expect(200);
                assert_eq!(
                    (null.outcome(), &null.text),
                    ("unchanged", &left_out.text),
                    "{what}"
                );
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_required_member_that_is_missing_or_null_is_named_with_all_other_faults() {
    let app = App::start().await;
    for kind in kinds() {
        let required = kind.required();
        for name in &required {
            let base = kind.first("R");
            for body in [without(&base, name), with(&base, name, Value::Null)] {
                let answer = app.post(kind.path, &body).await.expect(422);
                assert_eq!(answer.code(), "validation_failed");
                assert_eq!(answer.faulty(), [name.as_str()], "{}", kind.path);
            }
        }
        let answer = app
            .post(kind.path, &json!({"nonsense": 1}))
            .await
            .expect(422);
        let mut all = required.clone();
        all.push("nonsense".to_owned());
        all.sort();
        assert_eq!(answer.faulty(), all, "{}", kind.path);
        for wrong in [json!([]), json!("text"), json!(null), json!(7)] {
            let answer = app.post(kind.path, &wrong).await.expect(422);
            assert_eq!(answer.faulty(), [""], "{}: {wrong}", kind.path);
        }
        assert_eq!(app.count(kind.path).await, 0);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_member_of_a_wrong_type_is_named_whatever_the_type_is() {
    let app = App::start().await;
    for kind in kinds() {
        for name in kind.members() {
            for wrong in [json!(true), json!({"a": {"b": [1]}}), json!([[1]])] {
                let fits = kind.examples[0][&name].is_object() && wrong.is_object();
                if fits && kind.examples[0][&name].get("phone").is_none() {
                    continue; // any object is fine there
                }
                let body = with(&kind.first("W"), &name, wrong.clone());
                let answer = app.post(kind.path, &body).await.expect(422);
                let faulty = answer.faulty();
                let inside = |path: &String| *path == name || path.starts_with(&format!("{name}."));
                assert!(
                    !faulty.is_empty() && faulty.iter().all(inside),
                    "{name}: {faulty:?}"
                );
            }
        }
        assert_eq!(app.count(kind.path).await, 0);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_change_of_any_single_member_of_the_carried_customer_is_a_change() {
    let app = App::start().await;
    let person = person();
    // The carried customer has all members of a customer but these.
    let apart = |body: &Value| without(&without(body, "metadata"), "source_updated_at");
    let [first, second] = [apart(&person.examples[0]), apart(&person.examples[1])];
    for kind in kinds().into_iter().filter(|kind| kind.has_customer) {
        for name in second.as_object().expect("an object").keys() {
            let what = format!("{}.customer.{name}", kind.path);
            let key = format!("C-{}-{name}", kind.path);
            let customer = with(&first, "external_id", key.into());
            let base = with(&kind.first(name), "customer", customer.clone());
            let stored = app.post(kind.path, &base).await.expect(201).json();
            assert_holds(&stored, &base, &what);
            let mut value = second[name].clone();
            if name == "external_id" {
                value = json!(format!("other-{}", kind.path));
            }
            let body = with(&base, "customer", with(&customer, name, value));
            let changed = app.post(kind.path, &body).await.expect(200);
            assert_eq!(changed.outcome(), "updated", "{what}");
            assert_holds(&changed.json(), &body, &what);
            let moved = stored["customer"]["id"] != changed.json()["customer"]["id"];
            assert_eq!(moved, name == "external_id", "{what}");
            let found = app.get(&kind.one(name)).await.expect(200);
            assert_eq!(found.text, changed.text, "{what}");
        }
    }
    app.stop().await;
}
