//! Many at once on one key: the result is one that some order of them, one after another, would
//! give.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::app::{Answer, App};
use crate::support::kinds::{Kind, kinds, with};
use crate::support::rows::events_of;

const TASKS: usize = 32;

fn count(answers: &[Answer], outcome: &str) -> usize {
    answers
        .iter()
        .filter(|answer| answer.outcome() == outcome)
        .count()
}

/// The record, after checking that versions, events and answers tell one story.
async fn told(app: &App, kind: &Kind, key: &str, answers: &[Answer]) -> Value {
    for answer in answers {
        let status = answer.status.as_u16();
        assert!(
            [200, 201].contains(&status),
            "{}: {}",
            kind.path,
            answer.text
        );
        assert_eq!(status == 201, answer.outcome() == "created");
    }
    assert_eq!(count(answers, "created"), 1, "{}", kind.path);
    let changes = 1 + count(answers, "updated");
    let stored = app.get(&kind.one(key)).await.expect(200).json();
    assert_eq!(stored["version"], changes, "{}", kind.path);
    let mut expected = vec![(format!("{}.created", kind.singular), 1)];
    expected.extend(
        (2..=changes as i64).map(|version| (format!("{}.updated", kind.singular), version)),
    );
    assert_eq!(
        events_of(&app.pool, &stored).await,
        expected,
        "{}",
        kind.path
    );
    let mut versions: Vec<u64> = answers
        .iter()
        .filter(|answer| ["created", "updated"].contains(&answer.outcome()))
        .map(|answer| answer.json()["version"].as_u64().expect("a number"))
        .collect();
    versions.sort_unstable();
    assert!(
        versions.into_iter().eq(1..=changes as u64),
        "each change has a version of its own"
    );
    stored
}

#[tokio::test]
async fn equal_bodies_at_once_make_one_record() {
    let app = App::start().await;
    for kind in kinds() {
        let body = kind.first("R");
        let answers = join_all((0..TASKS).map(|_| app.post(kind.path, &body))).await;
        told(&app, &kind, "R", &answers).await;
        assert_eq!(count(&answers, "unchanged"), TASKS - 1, "{}", kind.path);
        assert!(
            answers.iter().all(|answer| answer.text == answers[0].text),
            "{}",
            kind.path
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn different_bodies_at_once_are_applied_one_after_another() {
    let app = App::start().await;
    for kind in kinds() {
        let bodies: Vec<Value> = (0..TASKS)
            .map(|at| with(&kind.first("R"), "metadata", json!({ "at": at })))
            .collect();
        let answers = join_all(bodies.iter().map(|body| app.post(kind.path, body))).await;
        let stored = told(&app, &kind, "R", &answers).await;
        assert_eq!(stored["version"], TASKS, "each differs from all others");
        let last = answers
            .iter()
            .find(|answer| answer.json()["version"] == TASKS);
        assert_eq!(last.expect("the last one").json(), stored, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn two_contents_at_once_alternate_without_losing_count() {
    let app = App::start().await;
    for kind in kinds() {
        let bodies = [kind.first("R"), kind.second("R")];
        let posts = (0..TASKS).map(|at| app.post(kind.path, &bodies[at % 2]));
        let answers = join_all(posts).await;
        told(&app, &kind, "R", &answers).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn patches_of_different_members_at_once_all_stay() {
    let app = App::start().await;
    for kind in kinds() {
        let Some(patch) = &kind.patch else { continue };
        app.post(kind.path, &kind.first("R")).await.expect(201);
        let one = kind.one("R");
        let bodies = kind
            .mutable
            .iter()
            .map(|name| json!({ *name: patch[name] }));
        let bodies: Vec<Value> = bodies.collect();
        let answers = join_all(bodies.iter().map(|body| app.patch(&one, body))).await;
        assert_eq!(count(&answers, "updated"), bodies.len());
        let stored = app.get(&one).await.expect(200).json();
        for name in kind.mutable {
            assert_eq!(stored[name], patch[name], "{}.{name}", kind.path);
        }
        assert_eq!(stored["version"], 1 + bodies.len());
    }
    app.stop().await;
}

#[tokio::test]
async fn of_writers_with_the_same_if_match_one_wins() {
    let app = App::start().await;
    for kind in kinds() {
        app.post(kind.path, &kind.first("R")).await.expect(201);
        let posts = (0..8).map(|at| {
            let body = with(&kind.first("R"), "metadata", json!({ "at": at }));
            let path = app.path(kind.path);
            let app = &app;
            async move {
                let headers = [("if-match", "\"1\"")];
                app.send(http::Method::POST, &path, &headers, body.to_string())
                    .await
            }
        });
        let mut statuses: Vec<u16> = join_all(posts)
            .await
            .iter()
            .map(|answer| answer.status.as_u16())
            .collect();
        statuses.sort_unstable();
        assert_eq!(
            statuses,
            [200, 412, 412, 412, 412, 412, 412, 412],
            "{}",
            kind.path
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn documents_with_the_same_keys_in_opposite_order_do_not_block_each_other() {
    let app = App::start().await;
    for kind in kinds() {
        let items = |backwards: bool| {
            let mut items: Vec<Value> = (0..40)
                .map(|at| {
                    with(
                        &kind.first(&format!("R{at}")),
                        "metadata",
                        json!({ "backwards": backwards }),
                    )
                })
                .collect();
            if backwards {
                items.reverse();
            }
            json!({ "items": items })
        };
        let (path, documents) = (kind.one("bulk"), [items(false), items(true)]);
        let posts = (0..8).map(|at| app.post(&path, &documents[at % 2]));
        let answers = join_all(posts).await;
        let sum = |outcome: &str| -> u64 {
            let of = |answer: &Answer| answer.json()["summary"][outcome].as_u64().unwrap_or(0);
            answers.iter().map(of).sum()
        };
        assert!(
            answers.iter().all(|answer| answer.status == 200),
            "{}",
            kind.path
        );
        assert_eq!((sum("created"), sum("failed")), (40, 0), "{}", kind.path);
        let page = app
            .get(&format!("{}?limit=200", kind.path))
            .await
            .expect(200)
            .json();
        let records = page["data"].as_array().expect("a list");
        let ours = records
            .iter()
            .filter(|one| one["metadata"].get("backwards").is_some());
        let versions: u64 = ours
            .map(|one| one["version"].as_u64().expect("a number"))
            .sum();
        assert_eq!(versions, 40 + sum("updated"), "{}", kind.path);
    }
    app.stop().await;
}
