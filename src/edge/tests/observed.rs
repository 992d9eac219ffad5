//! What the log and the metrics say of a request, and what they must not say.

use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use http::Request;
use metrics_exporter_prometheus::PrometheusBuilder;
use tower::ServiceExt;

use crate::clock::Clock;
use crate::edge::{Pot, wrap};
use crate::error::Error;

fn routes() -> Router {
    Router::new()
        .route("/ok/{key}", get(async || "ok"))
        .route("/panic/{key}", get(panics))
        .route(
            "/internal/{key}",
            get(async || Error::internal("the cause")),
        )
        .route(
            "/lost/{key}",
            get(async || Error::DatabaseUnavailable("refused".into())),
        )
}

async fn panics() -> Response {
    tracing::error!("a line from within");
    panic!("these words");
}

/// Sends requests in this thread; returns the log.
fn logged(requests: &[(&str, &str)]) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let router = wrap(routes(), Clock::system(), Pot::of_bytes(1 << 20));
            for (method, target) in requests {
                let request = Request::builder()
                    .method(*method)
                    .uri(*target)
                    .header("host", "x");
                let request = request.header("x-request-id", "id-7").body(Body::empty());
                let request = request.expect("a request");
                router.clone().oneshot(request).await.expect("infallible");
            }
        });
    });
    let bytes = log.0.lock().expect("not poisoned").clone();
    String::from_utf8(bytes).expect("UTF-8")
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failure_is_logged_with_its_cause_and_id_but_without_its_path() {
    let log = logged(&[
        ("GET", "/panic/secret?q=secret"),
        ("GET", "/internal/secret"),
    ]);
    let errors: Vec<_> = log
        .lines()
        .filter(|line| line.contains("internal error"))
        .collect();
    assert_eq!(errors.len(), 2, "{log}");
    assert!(
        errors[0].contains("these words") && errors[0].contains("/panic/{key}"),
        "{log}"
    );
    assert!(
        errors[1].contains("the cause") && errors[1].contains("/internal/{key}"),
        "{log}"
    );
    assert!(log.lines().all(|line| line.contains("id-7")), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn a_flood_of_failures_is_a_line_a_second() {
    let log = logged(&[("GET", "/lost/1"); 50]);
    assert_eq!(
        log.lines().filter(|line| line.contains("WARN")).count(),
        1,
        "{log}"
    );
}

#[test]
fn metrics_name_routes_by_pattern_and_invented_methods_by_one_name() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        logged(&[
            ("GET", "/ok/secret"),
            ("BREW", "/ok/secret"),
            ("GET", "/secret"),
        ])
    });
    let text = handle.render();
    for (labels, count) in [
        (r#"method="GET",route="/ok/{key}",status="200""#, 1),
        (r#"method="other",route="/ok/{key}",status="405""#, 1),
        (r#"method="GET",route="unmatched",status="404""#, 1),
    ] {
        let line = format!("keyfold_http_requests_total{{{labels}}} {count}\n");
        assert!(text.contains(&line), "{line} not in {text}");
    }
    assert!(
        text.contains("keyfold_http_request_duration_seconds"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
}
