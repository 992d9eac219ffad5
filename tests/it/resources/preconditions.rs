//! `If-Match` and `If-None-Match`.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::{Answer, App};
use crate::support::kinds::{Kind, kinds, with};
use crate::support::rows::snapshot;

async fn post_if(app: &App, kind: &Kind, header: (&str, &str), body: &Value) -> Answer {
    let path = app.path(kind.path);
    app.send(Method::POST, &path, &[header], body.to_string())
        .await
}

#[tokio::test]
async fn if_match_lets_only_the_named_version_be_written() {
    let app = App::start().await;
    for kind in kinds() {
        app.post(kind.path, &kind.first("V")).await.expect(201);
        let (first, second) = (kind.first("V"), kind.second("V"));
        let before = snapshot(&app.pool).await;
        for miss in ["\"2\"", "\"0\"", "1", "W/\"1\"", "\"nonsense\""] {
            for body in [&first, &second] {
                let answer = post_if(&app, &kind, ("if-match", miss), body)
                    .await
                    .expect(412);
                assert_eq!(answer.code(), "precondition_failed", "{miss}");
            }
        }
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        let same = post_if(&app, &kind, ("if-match", "\"1\""), &first)
            .await
            .expect(200);
        assert_eq!(same.outcome(), "unchanged");
        let hit = post_if(&app, &kind, ("if-match", "\"7\", \"1\""), &second)
            .await
            .expect(200);
        assert_eq!((hit.outcome(), hit.header("etag")), ("updated", "\"2\""));
        post_if(&app, &kind, ("if-match", "\"1\""), &first)
            .await
            .expect(412);
        let any = post_if(&app, &kind, ("if-match", "*"), &first)
            .await
            .expect(200);
        assert_eq!(any.outcome(), "updated");
    }
    app.stop().await;
}

#[tokio::test]
async fn if_match_never_makes_a_record() {
    let app = App::start().await;
    for kind in kinds() {
        for value in ["*", "\"1\"", "\"0\""] {
            post_if(&app, &kind, ("if-match", value), &kind.first("V"))
                .await
                .expect(412);
        }
        assert_eq!(app.count(kind.path).await, 0);
    }
    assert_eq!(app.count("events").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn if_none_match_makes_a_record_only_where_there_is_none() {
    let app = App::start().await;
    for kind in kinds() {
        let header = ("if-none-match", "*");
        post_if(&app, &kind, header, &kind.first("V"))
            .await
            .expect(201);
        let before = snapshot(&app.pool).await;
        for body in [kind.first("V"), kind.second("V")] {
            let answer = post_if(&app, &kind, header, &body).await.expect(412);
            assert_eq!(answer.code(), "precondition_failed");
        }
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn preconditions_come_before_lateness_and_after_the_fields() {
    let app = App::start().await;
    for kind in kinds() {
        let at = |body: Value, time: &str| with(&body, "source_updated_at", time.into());
        let stored = at(kind.first("V"), "2026-02-02T00:00:00Z");
        app.post(kind.path, &stored).await.expect(201);
        let late = at(kind.second("V"), "2026-02-01T00:00:00Z");
        post_if(&app, &kind, ("if-match", "\"9\""), &late)
            .await
            .expect(412);
        let stale = post_if(&app, &kind, ("if-match", "\"1\""), &late)
            .await
            .expect(200);
        assert_eq!(stale.outcome(), "stale");
        let (faulty, _) = kind.faulty("V");
        post_if(&app, &kind, ("if-match", "\"9\""), &faulty)
            .await
            .expect(422);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_patch_obeys_them_too_and_an_unknown_record_is_404_first() {
    let app = App::start().await;
    for kind in kinds() {
        let Some(patch) = &kind.patch else { continue };
        app.post(kind.path, &kind.first("V")).await.expect(201);
        let before = snapshot(&app.pool).await;
        let send = async |key: &str, header: (&str, &str), body: &Value| {
            let path = app.path(&kind.one(key));
            app.send(Method::PATCH, &path, &[header], body.to_string())
                .await
        };
        send("V", ("if-match", "\"2\""), patch).await.expect(412);
        send("V", ("if-match", "\"2\""), &json!({}))
            .await
            .expect(412);
        send("V", ("if-none-match", "*"), patch).await.expect(412);
        send("nobody", ("if-match", "*"), patch).await.expect(404);
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
        let hit = send("V", ("if-match", "\"1\""), patch).await.expect(200);
        assert_eq!((hit.outcome(), hit.header("etag")), ("updated", "\"2\""));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bulk_request_with_preconditions_is_refused() {
    let app = App::start().await;
    for kind in kinds() {
        let document = json!({"items": [kind.first("V")]}).to_string();
        let line = format!("{}\n", kind.first("V"));
        for (media, body) in [
            ("application/json", document),
            ("application/x-ndjson", line),
        ] {
            for header in [("if-match", "\"1\""), ("if-none-match", "*")] {
                let headers = [("content-type", media), header];
                let path = app.path(&kind.one("bulk"));
                let answer = app.send(Method::POST, &path, &headers, body.clone()).await;
                assert_eq!(answer.expect(400).code(), "precondition_not_supported");
            }
        }
        assert_eq!(app.count(kind.path).await, 0);
    }
    app.stop().await;
}
