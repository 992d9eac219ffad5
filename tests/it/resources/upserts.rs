//! POST: 201, then 200 without a trace, then a replacement.

use http::Method;
use serde_json::json;

use crate::support::app::App;
use crate::support::kinds::{assert_holds, content_of, keyed, kinds};
use crate::support::rows::{events_of, snapshot};

#[tokio::test]
async fn a_new_record_is_201_and_the_same_again_leaves_no_trace() {
    let app = App::start().await;
    for kind in kinds() {
        for (at, example) in kind.examples.iter().enumerate() {
            let example = &keyed(example, &format!("U{at}"));
            let first = app.post(kind.path, example).await.expect(201);
            let stored = first.json();
            assert_eq!(first.outcome(), "created");
            assert_eq!(
                (first.header("etag"), &stored["version"]),
                ("\"1\"", &json!(1))
            );
            assert_eq!(stored["store_id"], app.store_id);
            assert_eq!(stored["created_at"], stored["updated_at"]);
            assert_holds(&stored, example, kind.path);
            let created = [(format!("{}.created", kind.singular), 1)];
            assert_eq!(events_of(&app.pool, &stored).await, created);

            let before = snapshot(&app.pool).await;
            let again = app.post(kind.path, example).await.expect(200);
            assert_eq!(again.outcome(), "unchanged", "{}", kind.path);
            assert_eq!(again.header("etag"), "\"1\"");
            assert_eq!(again.header("location"), "", "nothing new is there");
            assert_eq!(again.text, first.text);
            assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);

            let location = first.header("location");
            let found = app.send(Method::GET, location, &[], "").await.expect(200);
            assert_eq!(found.text, first.text, "{location}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn another_content_under_the_same_key_replaces_the_record() {
    let app = App::start().await;
    for kind in kinds() {
        let [first, second] = &kind.examples;
        let key = "U";
        let old = app
            .post(kind.path, &keyed(first, key))
            .await
            .expect(201)
            .json();
        let body = keyed(second, key);
        let answer = app.post(kind.path, &body).await.expect(200);
        let new = answer.json();
        assert_eq!(answer.outcome(), "updated", "{}", kind.path);
        assert_eq!(
            (answer.header("etag"), &new["version"]),
            ("\"2\"", &json!(2))
        );
        assert_holds(&new, &body, kind.path);
        assert_eq!(
            (&new["id"], &new["created_at"]),
            (&old["id"], &old["created_at"])
        );
        let (was, is) = (old["updated_at"].as_str(), new["updated_at"].as_str());
        assert!(was < is, "{was:?} {is:?}");
        let updated = (format!("{}.updated", kind.singular), 2);
        let events = events_of(&app.pool, &new).await;
        assert_eq!((events.len(), events.last()), (2, Some(&updated)));
        let found = app.get(&kind.one(key)).await.expect(200);
        assert_eq!((found.json(), found.header("etag")), (new, "\"2\""));
    }
    app.stop().await;
}

#[tokio::test]
async fn what_a_replacement_leaves_out_is_as_in_a_record_that_never_had_it() {
    let app = App::start().await;
    for kind in kinds() {
        app.post(kind.path, &kind.first("full")).await.expect(201);
        let replaced = app.post(kind.path, &kind.least("full")).await.expect(200);
        let fresh = app.post(kind.path, &kind.least("bare")).await.expect(201);
        assert_eq!(replaced.outcome(), "updated", "{}", kind.path);
        let (mut replaced, mut fresh) = (content_of(&replaced.json()), content_of(&fresh.json()));
        for kept in kind.kept_when_left_out {
            assert_eq!(replaced.remove(*kept), kind.examples[0].get(*kept).cloned());
            fresh.remove(*kept);
        }
        assert_eq!(replaced, fresh, "{}", kind.path);
        for (name, value) in &fresh {
            if !kind
                .least("bare")
                .as_object()
                .expect("an object")
                .contains_key(name)
            {
                let is_default = value.is_null() || value.is_string() || value.is_number();
                let is_empty = *value == json!([]) || *value == json!({});
                assert!(is_default || is_empty, "{}.{name}: {value}", kind.path);
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_is_ignored_whatever_it_looks_like() {
    let app = App::start().await;
    let (post, long) = (Method::POST, "k".repeat(300));
    for kind in kinds() {
        let path = app.path(kind.path);
        let (first, second) = (kind.first("K").to_string(), kind.second("K").to_string());
        let headers = [("idempotency-key", "one")];
        let answer = app
            .send(post.clone(), &path, &headers, first)
            .await
            .expect(201);
        assert_eq!(answer.header("idempotency-status"), "ignored");
        // The same key with another body is no conflict, and a key in no form is no fault.
        for headers in [
            vec![("idempotency-key", "one")],
            vec![("idempotency-key", long.as_str())],
            vec![("idempotency-key", "with blanks")],
            vec![("idempotency-key", "one"), ("idempotency-key", "two")],
        ] {
            let answer = app
                .send(post.clone(), &path, &headers, second.clone())
                .await;
            let answer = answer.expect(200);
            assert_eq!(
                answer.header("idempotency-status"),
                "ignored",
                "{headers:?}"
            );
        }
        let plain = app.post(kind.path, &kind.second("K")).await.expect(200);
        assert_eq!(
            (plain.outcome(), plain.header("idempotency-status")),
            ("unchanged", "")
        );
        assert_eq!(plain.json()["version"], 2);
    }
    app.stop().await;
}
