//! `source_updated_at`: late writes don't win.

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::kinds::{Kind, kinds, with};
use crate::support::rows::{events_of, snapshot};

const EARLY: &str = "2026-02-01T00:00:00Z";
const MIDDLE: &str = "2026-02-02T00:00:00Z";
const LATE: &str = "2026-02-03T00:00:00Z";

fn at(body: &Value, time: &str) -> Value {
    with(body, "source_updated_at", time.into())
}

/// A record as of `MIDDLE`.
async fn stored(app: &App, kind: &Kind, key: &str) -> Value {
    let body = at(&kind.first(key), MIDDLE);
    let stored = app.post(kind.path, &body).await.expect(201).json();
    assert_eq!(stored["source_updated_at"], MIDDLE);
    stored
}

#[tokio::test]
async fn an_older_post_is_stale_and_answered_with_what_is_stored() {
    let app = App::start().await;
    for kind in kinds() {
        let stored = stored(&app, &kind, "S").await;
        let before = snapshot(&app.pool).await;
        for body in [kind.second("S"), kind.first("S")] {
            let late = app.post(kind.path, &at(&body, EARLY)).await.expect(200);
            assert_eq!((late.outcome(), late.header("etag")), ("stale", "\"1\""));
            assert_eq!(late.json(), stored, "{}", kind.path);
        }
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_post_without_the_time_is_applied_and_the_stored_time_stays() {
    let app = App::start().await;
    for kind in kinds() {
        stored(&app, &kind, "S").await;
        for body in [
            kind.second("S"),
            with(&kind.first("S"), "source_updated_at", Value::Null),
        ] {
            let applied = app.post(kind.path, &body).await.expect(200);
            assert_eq!(applied.outcome(), "updated", "{}", kind.path);
            assert_eq!(applied.json()["source_updated_at"], MIDDLE);
        }
        let late = app
            .post(kind.path, &at(&kind.second("S"), EARLY))
            .await
            .expect(200);
        assert_eq!(
            (late.outcome(), &late.json()["version"]),
            ("stale", &json!(3))
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn a_newer_time_with_equal_content_advances_and_nothing_else_moves() {
    let app = App::start().await;
    for kind in kinds() {
        let mut expected = stored(&app, &kind, "S").await;
        let later = app
            .post(kind.path, &at(&kind.first("S"), LATE))
            .await
            .expect(200);
        expected["source_updated_at"] = LATE.into();
        assert_eq!(
            (later.outcome(), later.header("etag")),
            ("unchanged", "\"1\"")
        );
        assert_eq!(later.json(), expected, "{}", kind.path);
        assert_eq!(app.get(&kind.one("S")).await.json(), expected);
        assert_eq!(events_of(&app.pool, &expected).await.len(), 1);
        let late = app
            .post(kind.path, &at(&kind.second("S"), MIDDLE))
            .await
            .expect(200);
        assert_eq!((late.outcome(), late.json()), ("stale", expected));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_record_without_a_time_takes_the_first_one_that_comes() {
    let app = App::start().await;
    for kind in kinds() {
        let first = app
            .post(kind.path, &kind.first("S"))
            .await
            .expect(201)
            .json();
        assert_eq!(first["source_updated_at"], Value::Null);
        let timed = app
            .post(kind.path, &at(&kind.first("S"), EARLY))
            .await
            .expect(200);
        assert_eq!(timed.outcome(), "unchanged");
        assert_eq!(timed.json()["source_updated_at"], EARLY);
    }
    app.stop().await;
}

#[tokio::test]
async fn an_equal_time_is_not_late_however_it_is_spelled() {
    let app = App::start().await;
    for kind in kinds() {
        stored(&app, &kind, "S").await;
        let same = at(&kind.second("S"), "2026-02-02T01:30:00+01:30");
        let applied = app.post(kind.path, &same).await.expect(200);
        assert_eq!(applied.outcome(), "updated", "{}", kind.path);
        assert_eq!(applied.json()["source_updated_at"], MIDDLE);
        let late = at(&kind.first("S"), "2026-02-01T23:59:59.999999Z");
        assert_eq!(app.post(kind.path, &late).await.outcome(), "stale");
        let exact = at(&kind.second("S"), "2026-02-02T00:00:00.000001Z");
        let exact = app.post(kind.path, &exact).await.expect(200).json();
        assert_eq!(exact["source_updated_at"], "2026-02-02T00:00:00.000001Z");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_patch_follows_the_same_rules() {
    let app = App::start().await;
    for kind in kinds() {
        let Some(patch) = kind.patch.clone() else {
            continue;
        };
        let mut expected = stored(&app, &kind, "S").await;
        let one = kind.one("S");
        let before = snapshot(&app.pool).await;
        let late = app.patch(&one, &at(&patch, EARLY)).await.expect(200);
        assert_eq!((late.outcome(), late.json()), ("stale", expected.clone()));
        assert_eq!(snapshot(&app.pool).await, before);

        let later = app
            .patch(&one, &json!({"source_updated_at": LATE}))
            .await
            .expect(200);
        expected["source_updated_at"] = LATE.into();
        assert_eq!((later.outcome(), later.json()), ("unchanged", expected));

        let applied = app.patch(&one, &patch).await.expect(200);
        assert_eq!(applied.outcome(), "updated");
        assert_eq!(applied.json()["source_updated_at"], LATE);
        let null = app
            .patch(&one, &json!({"source_updated_at": null}))
            .await
            .expect(200);
        assert_eq!((null.outcome(), &null.text), ("unchanged", &applied.text));
    }
    app.stop().await;
}
