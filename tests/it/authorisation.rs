//! Who may use what: every route of the OpenAPI document meets every wrong caller.

mod methods;

use std::time::{Duration, Instant};

use http::Method;
use keyfold::auth;
use keyfold::openapi;
use keyfold::tenancy::{self, NewStore};
use serde_json::Value;

use crate::support::app::{Answer, App, key, tenant};
use crate::support::automations::on_call;
use crate::support::kinds::kinds;

/// Routes that need no key. Whoever adds one says so here.
const OPEN: &[&str] = &[
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.yaml",
    "/openapi.json",
];
/// The routes that prove the caller in their own way.
const SIGNED: &[&str] = &["/webhooks/whatsapp"];
/// What most others begin with.
const SCOPED: &str = "/api/v1/stores/{store_id}/";
/// Those that name their store in the body or in the query.
const NAMING: &[&str] = &[
    "/api/v1/messages/send",
    "/api/v1/templates",
    "/api/v1/get_templates",
    "/api/v1/messages",
    "/api/v1/messages/{message_id}",
    "/api/v1/me",
    "/api/v1/idempotency-keys",
    "/api/v1/idempotency-keys/{endpoint}/{key}",
];
/// The route that names its store by an id that only its users know.
const CALLED: &[&str] = &["/api/v1/automations/{webhook_id}"];
/// How soon a change by the command line counts.
const SOON: Duration = Duration::from_secs(5);

/// Method and path of every documented route that needs a key.
fn keyed_routes() -> Vec<(Method, String)> {
    let mut routes = Vec::new();
    for (path, item) in openapi::document()["paths"].as_object().expect("paths") {
        let is_open = [OPEN, SIGNED].concat().contains(&path.as_str());
        let is_keyed =
            path.starts_with(SCOPED) || [NAMING, CALLED].concat().contains(&path.as_str());
        assert!(is_open != is_keyed, "{path} is in neither list");
        for (method, operation) in item.as_object().expect("an object") {
            if method == "parameters" {
                continue;
            }
            let needs_none = operation["security"] == serde_json::json!([]);
            assert_eq!(needs_none, is_open, "{method} {path}");
            if !is_open {
                let method = method.to_uppercase().parse().expect("a method");
                routes.push((method, path.clone()));
            }
        }
    }
    assert!(routes.len() >= 5 * kinds().len() + NAMING.len() + CALLED.len());
    routes
}

/// Those that name their store in the path.
fn scoped_routes() -> Vec<(Method, String)> {
    let mut routes = keyed_routes();
    routes.retain(|(_, path)| path.starts_with(SCOPED));
    routes
}

/// A path that can be asked for.
fn concrete(path: &str, store_id: impl ToString) -> String {
    let path = path.replace("{store_id}", &store_id.to_string());
    let mut path = path.replace("{external_id}", "nobody");
    for id in ["{message_id}", "{run_id}"] {
        path = path.replace(id, "01a21829-4c43-76b8-a2d0-ad5460a49fce");
    }
    let path = path.replace("{webhook_id}", "01a21829-4c43-46b8-a2d0-ad5460a49fce");
    let path = path.replace("{endpoint}/{key}", "send/nobody");
    path.replace("{key}", "nobody")
}

/// A request without body as far as the checks go; an empty key is none.
async fn ask(app: &App, method: &Method, path: &str, authorization: &str) -> Answer {
    let headers = [("authorization", authorization)];
    app.send(method.clone(), path, &headers, "").await
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// A problem without the id of its request.
fn problem(answer: &Answer) -> Value {
    let mut body = answer.json();
    let id = body["request_id"].take();
    assert_eq!(id, answer.header("x-request-id"));
    body
}

#[tokio::test]
async fn every_wrong_key_gets_the_same_401_on_every_route() {
    let app = App::start().await;
    let (id, revoked) = key(&app.pool, &app.clock, app.team_id, None).await;
    let now = app.clock.now();
    tenancy::revoke_key(&app.pool, id, now)
        .await
        .expect("done")
        .expect("it was there");
    let unknown = auth::new_key();
    let other = if app.key.ends_with('x') { 'y' } else { 'x' };
    let mistyped = format!("{}{other}", &app.key[..app.key.len() - 1]);
    let wrong = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        bearer("nonsense"),
        bearer("kf_"),
        bearer(&mistyped),
        bearer(&unknown),
        bearer(&revoked),
        bearer(&app.key.to_lowercase()),
        bearer(&format!("{} {}", app.key, app.key)),
        format!("Basic {}", app.key),
        app.key.clone(),
    ];
    let first = ask(&app, &Method::GET, &app.path("events"), "")
        .await
        .expect(401);
    for (method, path) in keyed_routes() {
        // A store that is not there or no number at all is not told apart, either.
        for store in [
            app.store_id.to_string(),
            "999999".to_owned(),
            "abc".to_owned(),
        ] {
            let path = concrete(&path, store);
            for wrong in &wrong {
                let answer = ask(&app, &method, &path, wrong).await.expect(401);
                assert_eq!(
                    answer.header("www-authenticate"),
                    "Bearer realm=\"keyfold\""
                );
                assert_eq!(answer.header("content-type"), "application/problem+json");
                assert_eq!(problem(&answer), problem(&first), "{method} {path} {wrong}");
            }
        }
        let twice = [bearer(&app.key), bearer(&app.key)];
        let twice = twice.each_ref().map(|one| ("authorization", one.as_str()));
        app.send(method, &concrete(&path, app.store_id), &twice, "")
            .await
            .expect(401);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_key_opens_its_own_stores_only_and_others_are_told_nothing_more() {
    let app = App::start().await;
    let now = app.clock.now();
    let (_, foreign_store, foreign) = tenant(&app.pool, &app.clock, "Other").await;
    let new = NewStore {
        team_id: app.team_id,
        name: "Second",
        external_id: None,
        default_country: None,
    };
    let second = tenancy::create_store(&app.pool, new, now)
        .await
        .expect("a store")
        .id;
    let new = NewStore {
        team_id: app.team_id,
        name: "Paused",
        external_id: None,
        default_country: None,
    };
    let paused = tenancy::create_store(&app.pool, new, now)
        .await
        .expect("a store")
        .id;
    tenancy::set_store_status(&app.pool, paused, "paused")
        .await
        .expect("done")
        .expect("there");
    let restricted = key(&app.pool, &app.clock, app.team_id, Some(second))
        .await
        .1;
    let (ours, foreign, restricted) = (bearer(&app.key), bearer(&foreign), bearer(&restricted));
    for (method, path) in scoped_routes() {
        let check = async |store: &str, key: &str, status: u16, code: &str| {
            let path = concrete(&path, store);
            let answer = ask(&app, &method, &path, key).await.expect(status);
            assert_eq!(answer.code(), code, "{method} {path}");
            assert_eq!(answer.header("www-authenticate"), "");
            answer
        };
        let own = app.store_id.to_string();
        check(&own, &foreign, 403, "store_forbidden").await;
        check(&own, &restricted, 403, "store_forbidden").await;
        check(&foreign_store.to_string(), &ours, 403, "store_forbidden").await;
        let unknown = check("999999", &ours, 404, "store_not_found").await;
        for key in [&ours, &foreign, &restricted] {
            let hidden = check(&paused.to_string(), key, 404, "store_not_found").await;
            assert_eq!(problem(&hidden), problem(&unknown));
        }
        for nonsense in [
            "abc",
            "0",
            "-1",
            "01",
            "+1",
            "1.0",
            "%31",
            "99999999999999999999",
            "1%20",
        ] {
            check(nonsense, &ours, 404, "store_not_found").await;
        }
        // Whoever may, comes further: to what is wrong with the request itself.
        for (store, key) in [
            (own.as_str(), &ours),
            (&second.to_string(), &ours),
            (&second.to_string(), &restricted),
        ] {
            let answer = ask(&app, &method, &concrete(&path, store), key).await;
            let code = if answer.status.is_success() {
                String::new()
            } else {
                answer.code()
            };
            let further = ["", "not_found", "query_invalid", "unsupported_media_type"];
            assert!(further.contains(&code.as_str()), "{method} {path}: {code}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_store_that_is_named_in_the_query_is_checked_like_one_in_the_path() {
    let app = App::start().await;
    let (_, foreign_store, _) = tenant(&app.pool, &app.clock, "Other").await;
    let ours = bearer(&app.key);
    let asked_in_query = keyed_routes().into_iter().filter(|(method, path)| {
        NAMING.contains(&path.as_str()) && *method != Method::POST && path != "/api/v1/me"
    });
    let mut seen = 0;
    for (method, path) in asked_in_query {
        seen += 1;
        let path = concrete(&path, "");
        let check = async |query: &str, status: u16, code: &str| {
            let answer = ask(&app, &method, &format!("{path}{query}"), &ours).await;
            assert_eq!(
                answer.status, status,
                "{method} {path}{query}: {}",
                answer.text
            );
            let said = if answer.status.is_success() {
                String::new()
            } else {
                answer.code()
            };
            assert_eq!(said, code, "{method} {path}{query}");
        };
        let foreign = format!("?store_id={foreign_store}");
        check(&foreign, 403, "store_forbidden").await;
        check("?store_id=999999", 404, "store_not_found").await;
        for nonsense in ["abc", "0", "-1", "1.0", "99999999999999999999"] {
            check(&format!("?store_id={nonsense}"), 400, "query_invalid").await;
        }
        check("?nonsense=1", 400, "query_invalid").await;
        // The team has one store, so it needs not be named.
        let answer = ask(&app, &method, &path, &ours).await;
        let fine = answer.status.is_success() || answer.code() == "not_found";
        assert!(fine, "{method} {path}: {}", answer.text);
    }
    assert_eq!(seen, 7);
    app.stop().await;
}

#[tokio::test]
async fn a_webhook_is_there_for_the_keys_of_its_store_and_for_nobody_else() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let saved = app.automate(&on_call("call", template)).await;
    let webhook = saved["webhook_id"].as_str().expect("an id");
    let path = format!("/api/v1/automations/{webhook}");
    let unknown = concrete(CALLED[0], "");
    let (second, restricted) = app.another_store(None).await;
    let (_, _, foreign) = tenant(&app.pool, &app.clock, "Other").await;
    let own = key(&app.pool, &app.clock, app.team_id, Some(app.store_id))
        .await
        .1;
    assert_ne!(second, app.store_id);
    // To others it is as unknown as one that was never made.
    let first = ask(&app, &Method::POST, &unknown, &bearer(&app.key)).await;
    let first = first.expect(404);
    assert_eq!(first.code(), "not_found");
    for stranger in [&foreign, &restricted] {
        for path in [&path, &unknown] {
            let answer = ask(&app, &Method::POST, path, &bearer(stranger)).await;
            assert_eq!(problem(&answer.expect(404)), problem(&first), "{path}");
        }
    }
    for wrong in ["", "Bearer nonsense", &bearer(&auth::new_key())] {
        for path in [&path, &unknown, "/api/v1/automations/abc"] {
            ask(&app, &Method::POST, path, wrong).await.expect(401);
        }
    }
    // Whoever may, comes further.
    for friend in [&app.key, &own] {
        let answer = ask(&app, &Method::POST, &path, &bearer(friend)).await;
        assert_eq!(answer.code(), "unsupported_media_type");
    }
    // A paused store has none.
    tenancy::set_store_status(&app.pool, app.store_id, "paused")
        .await
        .expect("done");
    let started = Instant::now();
    loop {
        let answer = ask(&app, &Method::POST, &path, &bearer(&app.key)).await;
        if answer.status == 404 {
            break;
        }
        assert!(started.elapsed() < SOON, "still {}", answer.status);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.stop().await;
}

/// Asks again and again until the status comes; fails when it takes too long.
async fn soon(app: &App, path: &str, key: &str, status: u16) {
    let started = Instant::now();
    loop {
        let answer = ask(app, &Method::GET, path, key).await;
        assert!(started.elapsed() < SOON, "still {}", answer.status);
        if answer.status == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_revoked_key_and_a_paused_store_count_within_5_seconds_though_remembered() {
    let app = App::start().await;
    let (id, doomed) = key(&app.pool, &app.clock, app.team_id, None).await;
    let (path, doomed, kept) = (app.path("events"), bearer(&doomed), bearer(&app.key));
    for warm in [&doomed, &kept] {
        ask(&app, &Method::GET, &path, warm).await.expect(200);
    }
    let now = app.clock.now();
    tenancy::revoke_key(&app.pool, id, now).await.expect("done");
    soon(&app, &path, &doomed, 401).await;
    ask(&app, &Method::GET, &path, &kept).await.expect(200);
    tenancy::set_store_status(&app.pool, app.store_id, "paused")
        .await
        .expect("done");
    soon(&app, &path, &kept, 404).await;
    // Known stores are remembered, unknown ones are not: back at once.
    tenancy::set_store_status(&app.pool, app.store_id, "active")
        .await
        .expect("done");
    ask(&app, &Method::GET, &path, &kept).await.expect(200);
    app.stop().await;
}

#[tokio::test]
async fn a_new_key_and_a_new_store_work_at_once() {
    let app = App::start().await;
    let next = app.store_id + 1;
    let path = format!("/api/v1/stores/{next}/events");
    ask(&app, &Method::GET, &path, &bearer(&app.key))
        .await
        .expect(404);
    let new = NewStore {
        team_id: app.team_id,
        name: "New",
        external_id: None,
        default_country: None,
    };
    let store = tenancy::create_store(&app.pool, new, app.clock.now())
        .await
        .expect("a store");
    assert_eq!(store.id, next);
    ask(&app, &Method::GET, &path, &bearer(&app.key))
        .await
        .expect(200);
    let fresh = key(&app.pool, &app.clock, app.team_id, Some(next)).await.1;
    ask(&app, &Method::GET, &path, &bearer(&fresh))
        .await
        .expect(200);
    app.stop().await;
}

#[tokio::test]
async fn what_needs_no_key_is_answered_without_one() {
    let app = App::start().await;
    for path in OPEN {
        ask(&app, &Method::GET, path, "").await.expect(200);
        ask(&app, &Method::GET, path, "Bearer nonsense")
            .await
            .expect(200);
        let answer = ask(&app, &Method::POST, path, "").await.expect(405);
        assert!(answer.header("allow").contains("GET"), "{path}");
    }
    app.stop().await;
}
