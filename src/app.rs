//! The whole service: routes, the order of what stands around them, and its life from a bound
//! listener to the last finished request.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State as Shared;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use utoipa_swagger_ui::{Config as DocsConfig, SwaggerUi};

use crate::automations;
use crate::database::{self, Database};
use crate::edge::{self, Limits, Pot, SharedBytes};
use crate::engine::group_commit::Lanes;
use crate::engine::http::{self as engine_http, Registered, Service};
use crate::engine::{Resource, consumers};
use crate::erasure::Eraser;
use crate::error::Error;
use crate::exports::{self, Exports};
use crate::messaging::idempotency::InUse;
use crate::messaging::{self, Messaging};
use crate::outbox::{Hints, Worker};
use crate::resources::{self, Visitor, customers};
use crate::state::{STATEMENT_DEADLINE, State};
use crate::targets::Guard;
use crate::vitals::{self, Ailment};
use crate::{maintenance, openapi, schema};

/// How long database work may go on after the last request.
const LAST_WORK: Duration = Duration::from_secs(10);
/// How long the worker waits for a connection of its own: it has more to do at once than connections.
const WORKER_PATIENCE: Duration = Duration::from_secs(20);
/// How often metrics are tidied; without it their samples would pile up.
const UPKEEP: Duration = Duration::from_secs(5);
/// Bytes of answers that wait to be sent, of all clients together.
const ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// How often the metrics are written out, at most: the text costs some milliseconds, and nobody needs
/// a key for it.
const RENDERED_EVERY: Duration = Duration::from_secs(1);
/// How long `/readyz` waits for the database.
const READY_TIME: Duration = Duration::from_secs(2);

/// What the operational routes share.
#[derive(Clone)]
struct Operation {
    state: State,
    metrics: PrometheusHandle,
    is_ready: Arc<AtomicBool>,
    lanes: Lanes,
    in_use: InUse,
    /// The metrics as they were last told, and when.
    rendered: Arc<Mutex<Option<(Instant, Bytes)>>>,
    /// Where the worker has connections of its own.
    worker_pool: Option<Database>,
}

/// Serves until `stop` comes true, then finishes what is under way.
///
/// # Errors
/// When the metrics recorder can't be installed.
pub async fn serve(
    listener: TcpListener,
    state: State,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let metrics = crate::telemetry::metrics().map_err(Error::internal)?;
    let is_ready = Arc::new(AtomicBool::new(true));
    let lanes = Lanes::start(&state, &limits).map_err(Error::internal)?;
    let lanes_closed = lanes.closed();
    let worker_state = match state.config.worker_connections() {
        0 => state.clone(),
        own => state.with_own_connections(database::Limits {
            max_connections: own,
            acquire: WORKER_PATIENCE,
            statement: STATEMENT_DEADLINE,
        }),
    };
    let guard = Guard::new(state.config.allow_private_targets.clone());
    let (works, hints) = if state.config.works {
        let (works, hints) = works(&worker_state, &guard)?;
        (Some(works), hints)
    } else {
        (None, Hints::none())
    };
    let messaging = Messaging::new(hints.clone());
    let exports = Exports {
        guard,
        hints: hints.clone(),
    };
    let operation = Operation {
        state: state.clone(),
        metrics: metrics.clone(),
        is_ready: is_ready.clone(),
        lanes,
        in_use: messaging.in_use.clone(),
        rendered: Arc::default(),
        worker_pool: (state.config.worker_connections() > 0).then(|| worker_state.pool.clone()),
    };
    let router = router(operation, messaging, exports, hints, &limits);
    let works = works.map(tokio::spawn);
    let of_state = state.clone();
    let cleaners = supervised(&state, "cleaners", move || {
        maintenance::run(of_state.clone())
    });
    let of_state = state.clone();
    let analyzer = supervised(&state, "analyzer", move || {
        maintenance::analyze_new_tables(of_state.clone())
    });
    let shutdown = state.shutdown.clone();
    let upkeep = supervised(&state, "upkeep", move || {
        keep_up(metrics.clone(), shutdown.clone())
    });
    let accepting = CancellationToken::new();
    let notice = limits.shutdown_notice;
    let server = tokio::spawn(edge::serve(listener, router, limits, accepting.clone()));
    stop.await;
    is_ready.store(false, Ordering::Relaxed);
    tracing::info!("stopping: finishing what is under way");
    accepting.cancel();
    tokio::time::sleep(notice).await;
    state.shutdown.cancel();
    for task in [server, cleaners, analyzer, upkeep]
        .into_iter()
        .chain(works)
    {
        task.await.map_err(Error::internal)?;
    }
    state.tasks.close();
    if tokio::time::timeout(LAST_WORK, state.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("some database work was still under way and is left to roll back");
    }
    let _ = tokio::time::timeout(LAST_WORK, lanes_closed.cancelled()).await;
    worker_state.pool.close();
    state.pool.close();
    Ok(())
}

/// Spawns a task that has to live until shutdown.
fn supervised<F>(
    state: &State,
    name: &'static str,
    task: impl FnMut() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(vitals::supervise(state.vitals.register(name), task))
}

async fn keep_up(metrics: PrometheusHandle, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(UPKEEP) => metrics.run_upkeep(),
        }
    }
}

/// The workers alone, until `stop` comes true.
///
/// # Errors
/// When they can't be set up.
pub async fn work(state: State, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let guard = Guard::new(state.config.allow_private_targets.clone());
    let (works, _) = works(&state, &guard)?;
    let works = tokio::spawn(works);
    stop.await;
    tracing::info!("stopping: finishing what is under way");
    state.shutdown.cancel();
    works.await.map_err(Error::internal)?;
    state.pool.close();
    Ok(())
}

/// What goes on beside the requests until shutdown: those who follow events, and the worker that does
/// what is left in the outbox; and where it takes hints.
fn works(
    state: &State,
    guard: &Guard,
) -> Result<(impl Future<Output = ()> + Send + use<>, Hints), Error> {
    let (worker, hints) = Worker::new(state, |hints| {
        let mut handlers = messaging::handlers(state)?;
        handlers.extend(automations::handlers(hints));
        handlers.extend(exports::handlers(guard)?);
        Ok(handlers)
    })
    .map_err(|error: Box<dyn std::error::Error + Send + Sync>| Error::internal(error))?;
    let pulse = state.vitals.register("worker");
    let worker = Arc::new(Mutex::new(worker));
    let worker = vitals::supervise(pulse.clone(), move || {
        let (worker, pulse) = (Arc::clone(&worker), pulse.clone());
        async move { worker.lock().await.run(&pulse).await }
    });
    let pulse = state.vitals.register("followers");
    let (state, given) = (state.clone(), hints.clone());
    let followers = vitals::supervise(pulse.clone(), move || {
        let consumers = vec![automations::consumer(), exports::consumer()];
        consumers::run(state.clone(), consumers, given.clone(), pulse.clone())
    });
    let works = async move {
        tokio::join!(worker, followers);
    };
    Ok((works, hints))
}

/// All routes, inside what the edge puts around them.
fn router(
    operation: Operation,
    messaging: Messaging,
    exports: Exports,
    hints: Hints,
    limits: &Limits,
) -> Router {
    let clock = operation.state.clock.clone();
    let registered = Registered {
        names: resources::names(),
        paths: openapi::event_paths(),
        erasers: erasers(),
    };
    let (state, lanes) = (operation.state.clone(), operation.lanes.clone());
    let answers = Pot::of_bytes(ANSWER_BYTES);
    let service = Service::new(state, lanes, limits.clone(), answers.clone(), registered);
    let docs =
        SwaggerUi::new("/docs").config(DocsConfig::from("/openapi.json").validator_url("none"));
    let docs = Router::from(docs).layer(map_response(as_unknown_route));
    let router = Router::new()
        .merge(operational(operation))
        .merge(docs)
        .merge(
            store_routes(&service)
                .merge(messaging::http::routes(&service, messaging))
                .merge(automations::http::routes(&service, hints))
                .merge(exports::http::routes(&service, exports))
                .with_state(service),
        )
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed);
    edge::wrap(router, clock, answers)
}

/// Everybody who keeps something about a person, in the order in which rows are locked.
fn erasers() -> Vec<Eraser> {
    let mut erasers = resources::erasers();
    erasers.push(|connection, person| Box::pin(automations::erase::forget(connection, person)));
    erasers.push(|connection, person| Box::pin(exports::erase::forget(connection, person)));
    erasers.push(|connection, person| Box::pin(messaging::erase::forget(connection, person)));
    erasers
}

/// What the page of the reference may do: it is all from here, writes styles into its elements, and
/// shows pictures that are in its style sheet.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'";

/// The page has an empty 404 of its own; every 404 of ours has a problem body.
async fn as_unknown_route(mut response: Response) -> Response {
    if response.status() == StatusCode::NOT_FOUND {
        return Error::RouteNotFound.into_response();
    }
    response.extensions_mut().insert(SharedBytes);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The routes of all resources, and what belongs to single ones.
fn store_routes(service: &Service) -> Router<Service> {
    struct Routes<'a> {
        service: &'a Service,
        router: Router<Service>,
    }
    impl Visitor for Routes<'_> {
        fn visit<R: Resource>(&mut self) {
            let router = std::mem::take(&mut self.router);
            self.router = router.merge(engine_http::routes::<R>(self.service));
        }
    }
    let mut routes = Routes {
        service,
        router: Router::new(),
    };
    resources::for_each(&mut routes);
    let delete = customers::erase::delete;
    routes
        .router
        .merge(engine_http::event_routes(service))
        .merge(engine_http::deletable(
            service,
            customers::Customer::PATH,
            delete,
        ))
}

fn operational(operation: Operation) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi_json))
        .route("/openapi.yaml", get(openapi_yaml))
        .with_state(operation)
}

/// The process answers.
async fn healthz() -> Response {
    status(StatusCode::OK, "ok")
}

/// The database can be reached and is migrated, the process is not about to end, and the tasks that
/// it can't be without get on.
async fn readyz(Shared(operation): Shared<Operation>) -> Response {
    if !operation.is_ready.load(Ordering::Relaxed) {
        return status(StatusCode::SERVICE_UNAVAILABLE, "stopping");
    }
    let unavailable = || status(StatusCode::SERVICE_UNAVAILABLE, "database_unavailable");
    match is_migrated(&operation.state).await {
        Some(true) => {}
        Some(false) => return status(StatusCode::SERVICE_UNAVAILABLE, "not_migrated"),
        None => return unavailable(),
    }
    let ailing = operation.state.vitals.ailing();
    if ailing.is_empty() {
        status(StatusCode::OK, "ready")
    } else if ailing.iter().all(|(_, why)| *why == Ailment::Failing) {
        unavailable()
    } else {
        let tasks: Vec<&str> = ailing.iter().map(|(task, _)| *task).collect();
        let body = json!({ "status": "stalled", "tasks": tasks });
        (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response()
    }
}

/// Whether the database is migrated; none when it can't be asked. One connection may have fallen
/// silent; another one tells whether the database has.
async fn is_migrated(state: &State) -> Option<bool> {
    for _ in 0..2 {
        let asked = tokio::time::timeout(READY_TIME, schema::is_current(&state.pool));
        match asked.await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(sqlx::Error::PoolTimedOut)) => return None,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    None
}

fn status(code: StatusCode, word: &'static str) -> Response {
    (code, axum::Json(json!({ "status": word }))).into_response()
}

/// Prometheus's text format, made anew once a second at most, for all who ask.
async fn metrics(Shared(operation): Shared<Operation>) -> Response {
    let mut rendered = operation.rendered.lock().await;
    let is_fresh = |(at, _): &&(Instant, Bytes)| at.elapsed() < RENDERED_EVERY;
    let text = match rendered.as_ref().filter(is_fresh) {
        Some((_, text)) => text.clone(),
        None => {
            let text = Bytes::from(render(&operation));
            *rendered = Some((Instant::now(), text.clone()));
            text
        }
    };
    drop(rendered);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn render(operation: &Operation) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a queue is short")]
    metrics::gauge!("keyfold_write_queue_depth").set(operation.lanes.depth() as f64);
    #[expect(
        clippy::cast_precision_loss,
        reason = "there are fewer than connections"
    )]
    metrics::gauge!("keyfold_idempotency_keys_in_use").set(operation.in_use.len() as f64);
    let mut pools = vec![&operation.state.pool, operation.lanes.pool()];
    pools.extend(&operation.worker_pool);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let idle: usize = pools.iter().map(|pool| pool.idle()).sum();
    metrics::gauge!("keyfold_database_connections", "state" => "idle").set(count(idle));
    let open: usize = pools.iter().map(|pool| pool.size()).sum();
    let used = count(open.saturating_sub(idle));
    metrics::gauge!("keyfold_database_connections", "state" => "used").set(used);
    operation.metrics.render()
}

async fn openapi_json(headers: HeaderMap) -> Result<Response, Error> {
    openapi::served::JSON.answer(&headers).await
}

async fn openapi_yaml(headers: HeaderMap) -> Result<Response, Error> {
    openapi::served::YAML.answer(&headers).await
}
