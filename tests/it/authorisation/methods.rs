//! The documented routes are the served ones: other methods are 405, other paths 404.

use std::collections::BTreeSet;

use http::Method;

use super::{ask, bearer, concrete, keyed_routes};
use crate::support::app::App;
use crate::support::kinds::kinds;

/// Whether a path that can be asked for is one of this documented form.
fn is_of(concrete: &str, form: &str) -> bool {
    let (concrete, form) = (concrete.split('/'), form.split('/'));
    concrete.clone().count() == form.clone().count()
        && concrete
            .zip(form)
            .all(|(part, form)| form.starts_with('{') || part == form)
}

#[tokio::test]
async fn a_method_that_is_not_documented_is_405_before_anything_is_checked() {
    let app = App::start().await;
    let routes = keyed_routes();
    let methods = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY",
    ];
    let paths: BTreeSet<&String> = routes.iter().map(|(_, path)| path).collect();
    for path in paths {
        let path = concrete(path, app.store_id);
        // `…/bulk` is also the path of a record with that key.
        let documented = routes.iter().filter(|(_, form)| is_of(&path, form));
        let mut allowed: BTreeSet<&str> = documented.map(|(method, _)| method.as_str()).collect();
        if allowed.contains("GET") {
            allowed.insert("HEAD");
        }
        for method in methods {
            let sent = method.parse().expect("a method");
            let answer = ask(&app, &sent, &path, "").await;
            if allowed.contains(method) {
                assert_eq!(
                    answer.status, 401,
                    "{method} {path} is documented, so it is served"
                );
                continue;
            }
            assert_eq!(answer.status, 405, "{method} {path} is not documented");
            // An answer to HEAD has no body.
            if method != "HEAD" {
                assert_eq!(answer.code(), "method_not_allowed", "{method} {path}");
            }
            let allow: BTreeSet<&str> = answer.header("allow").split(',').map(str::trim).collect();
            assert_eq!(allow, allowed, "{method} {path}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_path_is_404_with_and_without_a_key() {
    let app = App::start().await;
    let id = app.store_id;
    let mut paths: Vec<String> = [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v2/stores/1/events",
        "/Healthz",
        "/healthz/",
    ]
    .map(str::to_owned)
    .into();
    paths.extend(
        ["", "/", "/nonsense", "/events/", "/events/1", "//events"]
            .map(|rest| format!("/api/v1/stores/{id}{rest}")),
    );
    for kind in kinds() {
        let base = app.path(kind.path);
        for rest in ["/", "/a/b", "/bulk/", "/bulk/a", "s"] {
            paths.push(format!("{base}{rest}"));
        }
        paths.push(app.path(&kind.path.to_uppercase()));
        paths.push(app.path(kind.singular));
    }
    for path in paths {
        for key in ["", &bearer(&app.key)] {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                let answer = ask(&app, &method, &path, key).await.expect(404);
                assert_eq!(answer.code(), "route_not_found", "{method} {path}");
            }
        }
    }
    app.stop().await;
}
