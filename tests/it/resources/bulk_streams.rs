//! Bulk as a stream of lines.

use std::io::Write as _;

use http::Method;
use serde_json::{Value, json};

use crate::support::app::{Answer, App};
use crate::support::kinds::{Kind, kinds};
use crate::support::rows::snapshot;

async fn send(app: &App, kind: &Kind, query: &str, body: impl Into<Vec<u8>>) -> Answer {
    let path = app.path(&format!("{}{query}", kind.one("bulk")));
    let headers = [("content-type", "application/x-ndjson")];
    app.send(Method::POST, &path, &headers, body).await
}

/// The lines of an answer: results, and the last one.
fn parts(answer: &Answer) -> (Vec<Value>, Value) {
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert!(answer.text.ends_with('\n'));
    let lines = answer.text.lines();
    let mut lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let last = lines.pop().expect("a last line");
    (lines, last)
}

fn outcomes(results: &[Value]) -> Vec<&str> {
    results
        .iter()
        .map(|result| result["outcome"].as_str().expect("text"))
        .collect()
}

#[tokio::test]
async fn every_line_is_answered_and_the_last_one_says_that_it_is_complete() {
    let app = App::start().await;
    for kind in kinds() {
        let count = 600; // more than two slices
        let mut body = String::new();
        for at in 0..count {
            body += &format!("{}\n", kind.first(&format!("N{at}")));
        }
        let answer = send(&app, &kind, "", body.clone()).await.expect(200);
        let (results, last) = parts(&answer);
        assert_eq!(results.len(), count);
        for (at, result) in results.iter().enumerate() {
            assert_eq!(
                (&result["index"], &result["status"]),
                (&json!(at), &json!(201))
            );
            assert_eq!(result["external_id"], format!("N{at}"));
        }
        let summary =
            json!({"created": count, "updated": 0, "unchanged": 0, "stale": 0, "failed": 0});
        assert_eq!(
            last,
            json!({"summary": summary, "complete": true}),
            "{}",
            kind.path
        );
        let found = app.get(&kind.one("N599")).await.expect(200).json();
        assert_eq!(found["id"], results[599]["id"]);

        let before = snapshot(&app.pool).await;
        let (results, last) = parts(&send(&app, &kind, "", body).await.expect(200));
        assert_eq!(
            (results.len(), &last["summary"]["unchanged"]),
            (count, &json!(count))
        );
        assert_eq!(snapshot(&app.pool).await, before, "{}", kind.path);
    }
    app.stop().await;
}

#[tokio::test]
async fn lines_end_in_either_way_and_blank_ones_do_not_count() {
    let app = App::start().await;
    for kind in kinds() {
        let line = |key: &str| kind.first(key).to_string();
        // The last line has no end at all.
        let body = format!(
            "\n{}\r\n\r\n   \n{}\n\t\n\n{}",
            line("a"),
            line("b"),
            line("c")
        );
        let (results, last) = parts(&send(&app, &kind, "", body).await.expect(200));
        let keys: Vec<_> = results
            .iter()
            .map(|one| (one["index"].as_u64(), one["external_id"].as_str()))
            .collect();
        assert_eq!(
            keys,
            [
                (Some(0), Some("a")),
                (Some(1), Some("b")),
                (Some(2), Some("c"))
            ]
        );
        assert_eq!(last["complete"], true);
        for empty in ["\n", "\r\n \n"] {
            let (results, last) = parts(&send(&app, &kind, "", empty).await.expect(200));
            assert_eq!((results.len(), &last["complete"]), (0, &json!(true)));
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bad_line_fails_alone() {
    let app = App::start().await;
    for kind in kinds() {
        let line = |key: &str| kind.first(key).to_string();
        let (faulty, name) = kind.faulty("faulty");
        let long = format!(r#"{{"external_id":"long","x":"{}"}}"#, "x".repeat(1 << 20));
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        let twice = r#"{"external_id":"one","external_id":"two"}"#;
        let bad = [
            "{\"external_id\":",
            &faulty.to_string(),
            &long,
            &deep,
            twice,
            "[]",
        ];
        let mut body = line("first").into_bytes();
        for bad in bad {
            write!(body, "\n{bad}").expect("memory");
        }
        body.extend(b"\n{\"external_id\":\"\xff\"}\n");
        body.extend(line("last").into_bytes());
        let (results, last) = parts(&send(&app, &kind, "", body).await.expect(200));
        let seen: Vec<_> = results
            .iter()
            .map(|one| {
                (
                    one["status"].as_u64().expect("a number"),
                    one["code"].as_str().unwrap_or_default(),
                )
            })
            .collect();
        let codes = [201, 400, 422, 413, 400, 400, 422, 400, 201];
        assert_eq!(
            seen.iter().map(|one| one.0).collect::<Vec<_>>(),
            codes,
            "{seen:?}"
        );
        assert_eq!(seen[3].1, "body_too_large");
        assert_eq!(seen[4].1, "json_too_deep");
        assert!(results[2]["errors"][&name].is_array());
        assert_eq!(outcomes(&results[1..8]), ["failed"; 7]);
        assert_eq!(results[8]["index"], 8);
        assert_eq!(
            (&last["summary"]["created"], &last["summary"]["failed"]),
            (&json!(2), &json!(7))
        );
        assert_eq!(last["complete"], true);
        for key in ["first", "last"] {
            app.get(&kind.one(key)).await.expect(200);
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_line_of_just_1_mib_is_taken() {
    let app = App::start().await;
    for kind in kinds() {
        let mut line = kind.first("wide").to_string();
        let room = (1 << 20) - line.len();
        line.insert_str(1, &" ".repeat(room));
        assert_eq!(line.len(), 1 << 20);
        let longer = format!("{{ {}", &line[1..]);
        let body = format!("{line}\n{longer}\n{line}");
        let (results, _) = parts(&send(&app, &kind, "", body).await.expect(200));
        assert_eq!(
            outcomes(&results),
            ["created", "failed", "unchanged"],
            "{}",
            kind.path
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn the_same_key_twice_in_a_stream_is_applied_in_order() {
    let app = App::start().await;
    for kind in kinds() {
        let (first, second) = (kind.first("K"), kind.second("K"));
        let body = format!("{first}\n{second}\n{second}\n{first}\n");
        let (results, _) = parts(&send(&app, &kind, "", body).await.expect(200));
        assert_eq!(
            outcomes(&results),
            ["created", "updated", "unchanged", "updated"]
        );
        assert_eq!(app.get(&kind.one("K")).await.json()["version"], 3);
    }
    app.stop().await;
}

#[tokio::test]
async fn only_failed_lines_are_answered_if_that_is_asked_for() {
    let app = App::start().await;
    for kind in kinds() {
        let (faulty, _) = kind.faulty("faulty");
        let body = format!("{}\n{faulty}\n{}\n", kind.first("a"), kind.first("b"));
        let (results, last) = parts(
            &send(&app, &kind, "?results=failed", body.clone())
                .await
                .expect(200),
        );
        assert_eq!(
            (results.len(), &results[0]["index"]),
            (1, &json!(1)),
            "{}",
            kind.path
        );
        assert_eq!(
            (&last["summary"]["created"], &last["summary"]["failed"]),
            (&json!(2), &json!(1))
        );
        let (results, _) = parts(
            &send(&app, &kind, "?results=all", body.clone())
                .await
                .expect(200),
        );
        assert_eq!(results.len(), 3);
        for query in ["?results=some", "?atomic=true", "?dry_run=true"] {
            let answer = send(&app, &kind, query, body.clone()).await.expect(400);
            assert_eq!(answer.code(), "query_invalid", "{query}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn bodies_may_be_compressed() {
    let app = App::start().await;
    for kind in kinds() {
        let packed = |text: String| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(text.as_bytes()).expect("memory");
            packer.finish().expect("memory")
        };
        let (path, bulk) = (app.path(kind.path), app.path(&kind.one("bulk")));
        let one = packed(kind.first("one").to_string());
        let document = packed(json!({"items": [kind.first("document")]}).to_string());
        let lines = packed(format!("{}\n{}\n", kind.first("line"), kind.first("line")));
        for (path, media, body, expected) in [
            (&path, "application/json", one.clone(), 201),
            (&bulk, "application/json", document, 200),
            (&bulk, "application/x-ndjson", lines, 200),
        ] {
            let headers = [("content-encoding", "gzip"), ("content-type", media)];
            app.send(Method::POST, path, &headers, body)
                .await
                .expect(expected);
        }
        for key in ["one", "document", "line"] {
            app.get(&kind.one(key)).await.expect(200);
        }
        let headers = [("content-encoding", "br")];
        let answer = app
            .send(Method::POST, &path, &headers, one.clone())
            .await
            .expect(415);
        assert_eq!(answer.code(), "unsupported_content_encoding");
        let headers = [("content-encoding", "gzip")];
        let cut = one[..one.len() / 2].to_vec();
        app.send(Method::POST, &path, &headers, cut)
            .await
            .expect(400);
        // A stream that is cut inside answers what was whole and is not complete.
        let mut cut = packed(format!("{}\n", kind.first("whole")));
        cut.truncate(cut.len() - 4);
        let headers = [
            ("content-encoding", "gzip"),
            ("content-type", "application/x-ndjson"),
        ];
        let answer = app
            .send(Method::POST, &bulk, &headers, cut)
            .await
            .expect(200);
        let (_, last) = parts(&answer);
        assert_eq!(last["complete"], false, "{}", answer.text);
        assert_eq!(last["code"], "body_unreadable");
    }
    app.stop().await;
}

#[tokio::test]
async fn other_types_of_body_are_refused() {
    let app = App::start().await;
    for kind in kinds() {
        let body = kind.first("x").to_string();
        for (path, media) in [
            (kind.path.to_owned(), "text/plain"),
            (kind.path.to_owned(), "application/x-ndjson"),
            (kind.path.to_owned(), "application/json; charset=latin1"),
            (kind.one("bulk"), "text/csv"),
            (kind.one("bulk"), "application/merge-patch+json"),
        ] {
            let headers = [("content-type", media)];
            let answer = app
                .send(Method::POST, &app.path(&path), &headers, body.clone())
                .await;
            assert_eq!(
                answer.expect(415).code(),
                "unsupported_media_type",
                "{path} {media}"
            );
        }
        let untyped = [("content-type", "")];
        app.send(Method::POST, &app.path(kind.path), &untyped, body)
            .await
            .expect(415);
        assert_eq!(app.count(kind.path).await, 0);
    }
    app.stop().await;
}
