//! What happens to every request, whatever its route: request id, sizes, panics, the problem body
//! of a failure, the log and the metrics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hashbrown::{Equivalent, HashMap};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Version, header};
use tokio::time::Instant;
use tracing::Instrument;

use super::answer::counted;
use super::fault_log::FaultLog;
use super::pot::Pot;
use super::request_id::{REQUEST_ID, RequestId};
use super::shed::hold_back;
use crate::clock::Clock;
use crate::error::{Error, Failed};
use crate::vitals::panic_text;

/// Path and query together, in bytes as sent.
const MAX_TARGET_BYTES: usize = 8192;

/// All header lines together, in bytes.
const MAX_HEADERS_BYTES: usize = 16_384;

/// What a header line has besides name and value: colon, space, line end.
const HEADER_LINE_BYTES: usize = 4;

/// Puts the outermost layer around a finished router: nothing may be added to it afterwards, since
/// routes, layers and fallbacks added later would stand outside.
///
/// The process's metrics recorder must be installed before.
pub fn wrap(router: Router, clock: Clock, answers: Pot) -> Router {
    describe_metrics();
    let outer = Arc::new(Outer {
        clock,
        answers,
        faults: FaultLog::default(),
        measured: Measured::default(),
    });
    router.layer(from_fn_with_state(outer, answer))
}

struct Outer {
    clock: Clock,
    answers: Pot,
    faults: FaultLog,
    measured: Measured,
}

/// One request from outside to inside and back. A layer of the router, not around it: only there
/// the matched route is known.
async fn answer(State(outer): State<Arc<Outer>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers(), &outer.clock);
    let seen = Seen {
        id: id.clone(),
        method: method_label(request.method()),
        route: route(&request),
    };
    let response = match check_head(&request) {
        Err(error) => error.into_response(),
        Ok(()) => {
            request.extensions_mut().insert(id);
            // At the level of errors, so that no filter takes the id from the lines within.
            let span = tracing::error_span!("request", request_id = %seen.id);
            without_panic(next.run(request).instrument(span)).await
        }
    };
    let response = outer.problem(response, &seen).await;
    let mut response = match counted(response, &outer.answers) {
        Ok(response) => response,
        Err(error) => outer.problem(error.into_response(), &seen).await,
    };
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, seen.id.to_header());
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let (status, took) = (response.status().as_u16(), started.elapsed());
    seen.log(status, took);
    outer.measured.record(&seen, status, took);
    response
}

impl Outer {
    /// Gives a failed response its body; an overloaded one late, because clients that try again at
    /// once would eat the time that the others need.
    async fn problem(&self, response: Response, seen: &Seen) -> Response {
        let Some(Failed(error)) = response.extensions().get::<Failed>().cloned() else {
            return response;
        };
        let itself = error.itself();
        self.faults
            .write(itself, &seen.id, seen.method, &seen.route);
        if matches!(itself, Error::Overloaded) {
            hold_back().await;
        }
        with_problem(response, error.problem(seen.id.as_str()))
    }
}

/// Replaces status and body and keeps the headers that inner layers had set.
fn with_problem(failed: Response, problem: Response) -> Response {
    let (mut parts, _) = failed.into_parts();
    let (problem, body) = problem.into_parts();
    parts.status = problem.status;
    for of_the_old_body in [
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::ETAG,
    ] {
        parts.headers.remove(of_the_old_body);
    }
    for (name, value) in &problem.headers {
        parts.headers.insert(name, value.clone());
    }
    Response::from_parts(parts, body)
}

/// What the log and the metrics may know of a request.
struct Seen {
    id: RequestId,
    method: &'static str,
    route: Arc<str>,
}

impl Seen {
    fn log(&self, status: u16, took: Duration) {
        let latency_ms = took.as_secs_f64() * 1000.0;
        let Self { id, method, route } = self;
        // 503 comes in floods; its causes are in the log of faults, its number in the metrics.
        if status >= 500 && status != 503 {
            tracing::warn!(request_id = %id, method, route = %route, status, latency_ms, "request");
        } else {
            tracing::debug!(request_id = %id, method, route = %route, status, latency_ms, "request");
        }
    }
}

/// The metrics of requests. Finding one by its labels costs as much as reading a small body, so
/// those that were used are kept: methods, routes and statuses are few.
#[derive(Default)]
struct Measured(RwLock<HashMap<Series, (metrics::Counter, metrics::Histogram)>>);

#[derive(PartialEq, Eq, Hash)]
struct Series {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(PartialEq, Eq, Hash)]
struct SeriesRef<'a> {
    method: &'static str,
    route: &'a str,
    status: u16,
}

impl Equivalent<Series> for SeriesRef<'_> {
    fn equivalent(&self, key: &Series) -> bool {
        (self.method, self.route, self.status) == (key.method, &*key.route, key.status)
    }
}

impl Measured {
    fn record(&self, seen: &Seen, status: u16, took: Duration) {
        let series = SeriesRef {
            method: seen.method,
            route: &seen.route,
            status,
        };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((counter, histogram)) = known.get(&series) {
            counter.increment(1);
            histogram.record(took.as_secs_f64());
            return;
        }
        drop(known);
        let (counter, histogram) = metrics_of(seen, status);
        counter.increment(1);
        histogram.record(took.as_secs_f64());
        let series = Series {
            method: seen.method,
            route: Arc::clone(&seen.route),
            status,
        };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(series, (counter, histogram));
    }
}

fn metrics_of(seen: &Seen, status: u16) -> (metrics::Counter, metrics::Histogram) {
    let (method, route) = (seen.method, Arc::clone(&seen.route));
    let histogram = metrics::histogram!(
        "keyfold_http_request_duration_seconds",
        "method" => method,
        "route" => Arc::clone(&route),
    );
    let counter = metrics::counter!(
        "keyfold_http_requests_total",
        "method" => method,
        "route" => route,
        "status" => status.to_string(),
    );
    (counter, histogram)
}

fn describe_metrics() {
    use metrics::Unit;
    metrics::describe_counter!("keyfold_http_requests_total", "Requests answered.");
    metrics::describe_histogram!(
        "keyfold_http_request_duration_seconds",
        Unit::Seconds,
        "Time from the end of a request's headers to the begin of its answer."
    );
    metrics::describe_gauge!("keyfold_http_connections", "Open connections of clients.");
}

/// The route's pattern: a bounded set, and free of what callers put into paths.
fn route(request: &Request) -> Arc<str> {
    match request.extensions().get::<MatchedPath>() {
        Some(matched) => Arc::from(matched.as_str()),
        None => Arc::from("unmatched"),
    }
}

/// The method for logs and metrics: callers can invent methods, so unknown ones share a name.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn check_head(request: &Request) -> Result<(), Error> {
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET_BYTES {
        return Err(Error::TargetTooLong);
    }
    if header_bytes(request.headers()) > MAX_HEADERS_BYTES {
        return Err(Error::HeadersTooLarge);
    }
    if has_host(request) {
        Ok(())
    } else {
        Err(Error::HostInvalid)
    }
}

/// Whether there is exactly one valid `Host` (RFC 9112, section 3.2); HTTP/1.0 needs none. Two of them,
/// or one that is read in two ways, let a proxy in front see another request than we do.
fn has_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() == Version::HTTP_10,
        (Some(host), None) => {
            let authority = Authority::try_from(host.as_bytes());
            authority.is_ok_and(|authority| !authority.as_str().contains('@'))
        }
        (Some(_), Some(_)) => false,
    }
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_LINE_BYTES)
        .sum()
}

/// Turns a panic of a handler into an internal error that carries its words to the log.
async fn without_panic(handler: impl Future<Output = Response>) -> Response {
    // What a handler shares with others stands behind locks or in the database, both of which know
    // how to go on after a panic.
    match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => Error::internal(format!("panic: {}", panic_text(&*panic))).into_response(),
    }
}
