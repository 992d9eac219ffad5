//! GET of one record, and keys in paths.

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::support::app::App;
use crate::support::kinds::kinds;

#[tokio::test]
async fn an_unknown_record_is_404_whatever_its_key_looks_like() {
    let app = App::start().await;
    for kind in kinds() {
        for segment in ["nobody", "%00", "%0A", &"x".repeat(256), "bulk"] {
            let answer = app.get(&kind.one(segment)).await.expect(404);
            assert_eq!(answer.code(), "not_found", "{}/{segment}", kind.path);
        }
        for segment in ["%", "%4", "%zz", "%FF", "a%C3"] {
            let path = app.path(&kind.one(segment));
            let answer = app.send(Method::GET, &path, &[], "").await.expect(400);
            assert_eq!(answer.code(), "path_invalid", "{segment}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_query_parameter_that_is_not_known_is_refused() {
    let app = App::start().await;
    for kind in kinds() {
        let answer = app.get(&kind.one("x?nonsense=1")).await.expect(400);
        assert_eq!(
            (answer.code().as_str(), answer.faulty()),
            ("query_invalid", vec!["nonsense".into()])
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn any_key_is_found_under_its_percent_encoded_form() {
    let app = App::start().await;
    let longest = "😀".repeat(255);
    let mut keys = vec![
        "A/7",
        "ü",
        "a b",
        "100%",
        "+",
        "A%2F7",
        "?x=1#y",
        "bulk",
        "events",
        " ",
        "...",
        "é",
        "e\u{301}",
        "a",
        "A",
        "\"quoted\"",
        "{id}",
        "a\\b",
        ";,:@&=$!*'()~",
        "%",
        "\u{feff}",
    ];
    keys.push(&longest);
    for kind in kinds() {
        for key in &keys {
            let what = format!("{} {key}", kind.path);
            let posted = app.post(kind.path, &kind.first(key)).await.expect(201);
            assert_eq!(posted.json()["external_id"], *key, "{what}");
            let segment = utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
            let found = app.get(&kind.one(&segment)).await.expect(200);
            assert_eq!(found.text, posted.text, "{what}");
            let location = posted.header("location");
            let found = app.send(Method::GET, location, &[], "").await.expect(200);
            assert_eq!(found.text, posted.text, "{what} at {location}");
            if let Some(patch) = &kind.patch {
                let patched = app.patch(&kind.one(&segment), patch).await.expect(200);
                assert_eq!(patched.json()["id"], posted.json()["id"], "{what}");
                let path = location;
                let patched = app.send(Method::PATCH, path, &[], patch.to_string()).await;
                assert_eq!(
                    patched.expect(200).json()["id"],
                    posted.json()["id"],
                    "{what}"
                );
            }
        }
        // `+` is no blank in a path.
        app.get(&kind.one("a+b")).await.expect(404);
        // Keys that many clients can't address are refused.
        for key in [".", "..", "", "a\nb", "\u{0}"] {
            let answer = app.post(kind.path, &kind.first(key)).await.expect(422);
            assert_eq!(answer.faulty(), ["external_id"], "{key:?}");
        }
        let long = format!("{longest}x");
        app.post(kind.path, &kind.first(&long)).await.expect(422);
    }
    app.stop().await;
}
