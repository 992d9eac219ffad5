//! The routes that every resource has, written once.
//!
//! A request passes, in this order: the key (401), the store (404, 403), the store's rate (429), the
//! queue (503); then its handler: media type and encoding (415), size (413), syntax (400), fields
//! (422), and what the record says (404, 412). Database work runs in a task of its own, so that a
//! caller who hangs up cuts nothing in half.

use std::borrow::Cow;
use std::future::Future;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State as Given};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Extension, Router};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use uuid::Uuid;

use super::events::{self, Feed, NameLookup};
use super::group_commit::{Lanes, Writer};
use super::read::{self, List};
use super::request::Conditions;
use super::write::{self, Change, Detail, Ending, LockWait, Options, Outcome, Write, Written};
use super::{Resource, bulk};
use crate::auth::{Gatekeeper, StoreAccess};
use crate::edge::{self, Gate, Holder, Limits, Pot, RateLimiter, WholeBody, media_type};
use crate::erasure::Eraser;
use crate::error::Error;
use crate::state::State;
use crate::tenancy::KeyScope;
use crate::values::{Faults, Fields, Node, parse};

/// Most bytes of a body that holds one record, and of one line of a bulk stream.
pub const RECORD_BYTES: usize = 1024 * 1024;
/// Room for an answer that shows one record; most need no more.
const RECORD_ANSWER: usize = 1024;
/// What every store-scoped route begins with.
pub const STORE: &str = "/api/v1/stores/{store_id}";
/// Requests that may wait for the database behind those that use it.
const MOST_WAITING: usize = 512;
/// Bytes of bodies that a process has in memory.
const BODY_BYTES: usize = 64 * 1024 * 1024;
/// Bulk streams of a process, and of a store, that are open at a time.
const MOST_STREAMS: usize = 64;
const STREAMS_OF_A_STORE: usize = 8;
/// Dry runs at a time.
const DRY_RUNS: usize = 2;
/// How long a dry run may take.
const DRY_RUN_TIME: Duration = Duration::from_secs(5);

const JSON: &[&str] = &["application/json"];
const PATCH_JSON: &[&str] = &["application/json", "application/merge-patch+json"];

const OUTCOME: HeaderName = HeaderName::from_static("keyfold-outcome");
const DRY_RUN: HeaderName = HeaderName::from_static("keyfold-dry-run");
/// Honoured by the two sending endpoints alone.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_STATUS: HeaderName = HeaderName::from_static("idempotency-status");

/// What the routes share. Each layer and handler of a request holds a clone, so that is cheap.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

impl Deref for Service {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// See [`Service`].
pub struct Shared {
    /// Pool, settings, clock.
    pub state: State,
    /// Keys and stores.
    pub gatekeeper: Gatekeeper,
    /// How often each store may ask.
    pub limiter: RateLimiter,
    /// Where writes wait for each other.
    pub lanes: Lanes,
    /// How many other requests use the database.
    pub gate: Gate,
    /// How many bulk requests use it: never so many that single ones starve.
    pub bulk_gate: Gate,
    /// Bytes of all bodies in memory.
    pub bodies: Pot,
    /// Bytes of all answers in memory that have not been sent yet.
    pub answers: Pot,
    /// Bulk streams that are open.
    pub streams: Pot,
    /// Deadlines of bodies.
    pub limits: Limits,
    /// Places for dry runs.
    pub dry_runs: Arc<Semaphore>,
    /// Who knows the external ids that events don't keep.
    pub names: Arc<[(&'static str, NameLookup)]>,
    /// Resources that have events.
    pub paths: Vec<&'static str>,
    /// Who keeps something about people.
    pub erasers: Arc<[Eraser]>,
}

/// What the modules above the engine register with it.
pub struct Registered {
    /// Who knows the external ids that events don't keep.
    pub names: Vec<(&'static str, NameLookup)>,
    /// The paths of all resources.
    pub paths: Vec<&'static str>,
    /// Who keeps something about people.
    pub erasers: Vec<Eraser>,
}

impl Service {
    /// A service over a state, for these resources.
    #[must_use]
    pub fn new(
        state: State,
        lanes: Lanes,
        limits: Limits,
        answers: Pot,
        registered: Registered,
    ) -> Self {
        let slots = state.request_slots();
        Self(Arc::new(Shared {
            gatekeeper: Gatekeeper::new(&state),
            limiter: RateLimiter::new(state.config.rate_limit_per_minute),
            lanes,
            gate: Gate::new(slots, MOST_WAITING),
            bulk_gate: Gate::new(slots.div_ceil(2), MOST_WAITING),
            bodies: Pot::of_bytes(BODY_BYTES),
            answers,
            streams: Pot::of_number(MOST_STREAMS, STREAMS_OF_A_STORE),
            limits,
            dry_runs: Arc::new(Semaphore::new(DRY_RUNS)),
            names: registered.names.into(),
            paths: registered.paths,
            erasers: registered.erasers.into(),
            state,
        }))
    }

    /// The refusal of a request that names a key, but no store that it may use: it counts against the
    /// key, and when there were too many of them, that is the answer.
    #[must_use]
    pub fn on_account(&self, caller: KeyScope, refusal: Error) -> Error {
        self.limiter
            .charge_key(caller.key_id)
            .err()
            .unwrap_or(refusal)
    }

    /// Runs database work beside the lanes, when there is a place for it, in turns with the work of
    /// others.
    ///
    /// # Errors
    /// What the work answers, or that the server is too busy to begin it.
    pub async fn run<T, F>(&self, holder: Holder, work: impl FnOnce(State) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let permit = self.gate.enter(holder).await?;
        let work = Box::pin(work(self.state.clone()));
        self.uncut(async move {
            let result = work.await;
            drop(permit);
            result
        })
        .await
    }

    /// Runs work that no hang-up may cut.
    ///
    /// # Errors
    /// What the work answers.
    pub async fn uncut<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let task = self
            .state
            .tasks
            .spawn(work.instrument(tracing::Span::current()));
        match task.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(Error::internal(error)),
            },
        }
    }

    /// Reads a body whole.
    ///
    /// # Errors
    /// 415, 413, 503, 408 or 400.
    pub async fn read_whole(
        &self,
        holder: Holder,
        headers: &HeaderMap,
        body: axum::body::Body,
        limit_bytes: usize,
    ) -> Result<WholeBody, Error> {
        let held = self.bodies.take(holder, 0)?;
        let within = self.limits.body_total_timeout;
        edge::read_whole(body, headers, limit_bytes, held, within).await
    }
}

/// The routes of one resource. `bulk` is a key like any other to everything but POST, which no
/// single record takes.
pub fn routes<R: Resource>(service: &Service) -> Router<Service> {
    // Handed to the handlers as they are made: one more layer would be one more copy of all of them
    // for each request.
    let writer = Writer::<R>::start(&service.lanes);
    let (posting, patching) = (writer.clone(), writer.clone());
    let post_one = |service, store, request| post_one::<R>(service, store, posting, request);
    let patch_one = |service, store, request| patch_one::<R>(service, store, patching, request);
    let one = get(get_one::<R>);
    let one = if R::MUTABLE.is_empty() {
        one
    } else {
        one.patch(patch_one)
    };
    Router::new()
        .route(
            &format!("{STORE}/{}", R::PATH),
            guarded(service, get(list::<R>).post(post_one)),
        )
        .route(
            // A record may be called `bulk` too: only POST means the many.
            &format!("{STORE}/{}/bulk", R::PATH),
            guarded(service, one.clone().merge(bulk::route::<R>(writer))),
        )
        .route(
            &format!("{STORE}/{}/{{external_id}}", R::PATH),
            guarded(service, one),
        )
}

/// The events of a store.
pub fn event_routes(service: &Service) -> Router<Service> {
    Router::new().route(
        &format!("{STORE}/events"),
        guarded(service, get(list_events)),
    )
}

/// Puts the checks before handlers of store-scoped routes. A wrong method is answered before them.
pub fn guarded(service: &Service, methods: MethodRouter<Service>) -> MethodRouter<Service> {
    methods.route_layer(from_fn_with_state(service.clone(), admit))
}

/// Adds a DELETE to a route of a resource, behind the same checks.
pub fn deletable<H, T>(service: &Service, path: &str, handler: H) -> Router<Service>
where
    H: Handler<T, Service>,
    T: 'static,
{
    let methods = guarded(service, axum::routing::delete(handler));
    Router::new()
        .route(&format!("{STORE}/{path}/bulk"), methods.clone())
        .route(&format!("{STORE}/{path}/{{external_id}}"), methods)
}

/// The checks that come before a body is read.
async fn admit(Given(service): Given<Service>, mut request: Request, next: Next) -> Response {
    let sends_key = request.headers().contains_key(IDEMPOTENCY_KEY);
    let mut response = match open(&service, &mut request).await {
        Ok((limit, store)) => {
            let mut response = match limit
                .admit()
                .and_then(|()| has_room(&service, store.holder(), &request))
            {
                Ok(()) => next.run(request).await,
                Err(error) => error.into_response(),
            };
            limit.describe(response.headers_mut());
            response.extensions_mut().insert(store.holder());
            response
        }
        Err(error) => error.into_response(),
    };
    if sends_key {
        say_ignored(&mut response);
    }
    response
}

/// Says that an `Idempotency-Key` was not read: a layer for routes that are not store-scoped.
pub async fn ignoring_keys(request: Request, next: Next) -> Response {
    let sends_key = request.headers().contains_key(IDEMPOTENCY_KEY);
    let mut response = next.run(request).await;
    if sends_key {
        say_ignored(&mut response);
    }
    response
}

fn say_ignored(response: &mut Response) {
    let ignored = HeaderValue::from_static("ignored");
    response.headers_mut().insert(IDEMPOTENCY_STATUS, ignored);
}

/// Who is calling. Notes the use of the key.
///
/// # Errors
/// `Unauthorized`, or that the database can't be asked.
pub async fn caller(service: &Service, headers: &HeaderMap) -> Result<KeyScope, Error> {
    let caller = service.gatekeeper.caller(headers).await?;
    let now = service.state.clock.now();
    if service.gatekeeper.is_use_due(caller.key_id, now) {
        note_use(&service.state, caller.key_id);
    }
    Ok(caller)
}

/// Whether there is any hope to be served, asked before a body is read.
fn has_room(service: &Service, holder: Holder, request: &Request) -> Result<(), Error> {
    match *request.method() {
        Method::POST | Method::PATCH => service.lanes.check(holder.key()),
        _ => service.gate.check(holder),
    }
}

/// Who is calling, and may they use this store?
async fn open(
    service: &Service,
    request: &mut Request,
) -> Result<(edge::Decision, StoreAccess), Error> {
    let caller = caller(service, request.headers()).await?;
    let store_id = store_id(request.uri().path())
        .ok_or_else(|| service.on_account(caller, Error::StoreNotFound))?;
    let store = service.gatekeeper.store(caller, store_id).await;
    let store = store.map_err(|error| service.on_account(caller, error))?;
    request.extensions_mut().insert(store);
    Ok((service.limiter.check(store_id), store))
}

/// Writes down that a key was used, without letting the caller wait for it.
fn note_use(state: &State, key_id: Uuid) {
    let task = state.clone();
    state.tasks.spawn(async move {
        let now = task.clock.now();
        if let Err(error) = crate::tenancy::touch_keys(&task.pool, &[key_id], now).await {
            tracing::debug!(%error, "the use of a key could not be noted");
        }
    });
}

/// `/api/v1/stores/{store_id}/…`: a positive number as we print it.
fn store_id(path: &str) -> Option<i64> {
    let segment = path.split('/').nth(4)?;
    let id: i64 = segment.parse().ok()?;
    (id > 0 && id.to_string() == segment).then_some(id)
}

/// The last segment of a path, decoded once.
///
/// # Errors
/// `PathInvalid` for a broken escape and for one that is not UTF-8.
pub fn last_segment(path: &str) -> Result<String, Error> {
    segment_from_end(path, 0)
}

/// A segment of a path, counted from its end, decoded once.
///
/// # Errors
/// `PathInvalid` for a broken escape and for one that is not UTF-8.
pub fn segment_from_end(path: &str, place: usize) -> Result<String, Error> {
    let segment = path.rsplit('/').nth(place).unwrap_or_default();
    let decoded = decoded(segment).ok_or(Error::PathInvalid)?;
    Ok(decoded.into_owned())
}

/// Text without its percent-escapes; none for a broken escape and for one that is not UTF-8.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    let mut escapes = text.split('%');
    let _before_the_first = escapes.next();
    let is_hex = |escape: &str| {
        escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
    };
    if !escapes.all(is_hex) {
        return None;
    }
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .ok()
}

/// What must be escaped in a path segment (RFC 3986, section 3.3), and a little more.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'+')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The parameters of a query, each known and at most once.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query that may have these parameters.
    ///
    /// # Errors
    /// `QueryInvalid` naming those that are unknown, come twice or can't be decoded: a mistyped
    /// `dry_run` must not write.
    pub fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Error> {
        let query = query.unwrap_or_default();
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        // The parser repairs what it can't decode, and steps over empty parts.
        let sent = query.split('&').filter(|part| !part.is_empty());
        let mut faults = Faults::default();
        for (at, ((name, _), sent)) in pairs.iter().zip(sent).enumerate() {
            if !known.contains(&name.as_str()) {
                faults.add(
                    name.chars().take(100).collect::<String>(),
                    "is not a known parameter",
                );
            } else if decoded(sent).is_none() {
                faults.add(
                    name.as_str(),
                    "has a broken percent-escape or one that is not UTF-8",
                );
            } else if pairs[..at].iter().any(|(earlier, _)| earlier == name) {
                faults.add(name.as_str(), "is given twice");
            }
        }
        faults.into_result().map_err(Error::QueryInvalid)?;
        Ok(Self(pairs))
    }

    /// A parameter as it was sent.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// A parameter that `parse` understands.
    ///
    /// # Errors
    /// `QueryInvalid` when it doesn't, with the sentence.
    pub fn parsed<T>(
        &self,
        name: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.text(name)
            .map(|text| parse(text).ok_or_else(|| Error::QueryInvalid(Faults::at(name, wanted))))
            .transpose()
    }

    /// A parameter that is `true` or `false`; left out it is false.
    ///
    /// # Errors
    /// `QueryInvalid` for anything else.
    pub fn flag(&self, name: &str) -> Result<bool, Error> {
        let flag = self.parsed(name, "must be true or false", |text| text.parse().ok())?;
        Ok(flag.unwrap_or(false))
    }

    /// `limit`: 1 to 200, 50 if left out.
    ///
    /// # Errors
    /// `QueryInvalid` for anything else.
    pub fn limit(&self) -> Result<u32, Error> {
        let limit = self.parsed("limit", "must be a number from 1 to 200", |text| {
            number(text).filter(|limit| (1..=200).contains(limit))
        })?;
        Ok(limit.unwrap_or(50))
    }
}

/// A number of digits alone: `parse` would take a plus sign as well.
pub fn number<T: FromStr>(text: &str) -> Option<T> {
    let only_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    only_digits.then(|| text.parse().ok()).flatten()
}

/// Reads the body of a POST, or an item of a bulk request.
///
/// # Errors
/// `Invalid` with every faulty field.
pub fn read_put<R: Resource>(
    node: &Node<'_>,
    bytes: usize,
    store: &StoreAccess,
    state: &State,
) -> Result<Write<R>, Error> {
    let mut fields = Fields::of(node).map_err(Error::Invalid)?;
    let input = R::read_input(&mut fields, store);
    fields.finish().map_err(Error::Invalid)?;
    let input = input.ok_or_else(|| Error::internal("an input without faults was not read"))?;
    let source = R::source_updated_at(&input);
    Ok(Write::new(
        store.store_id,
        Change::Put(input),
        source,
        bytes,
        &state.clock,
    ))
}

/// Reads the body of a PATCH.
fn read_patch<R: Resource>(
    node: &Node<'_>,
    bytes: usize,
    key: R::Key,
    store: &StoreAccess,
    state: &State,
) -> Result<Write<R>, Error> {
    let mut fields = Fields::of(node).map_err(Error::Invalid)?;
    let patch = R::read_patch(&mut fields);
    let source = fields.optional("source_updated_at", crate::values::Timestamp::read);
    let mut refused = false;
    for name in R::IMMUTABLE {
        refused |= fields.refuse(name, "can't be changed by PATCH");
    }
    let refusal = if refused {
        Error::NotMutable
    } else {
        Error::Invalid
    };
    fields.finish().map_err(refusal)?;
    let patch = patch.ok_or_else(|| Error::internal("a patch without faults was not read"))?;
    let change = Change::Patch(key, patch);
    Ok(Write::new(
        store.store_id,
        change,
        source.map(crate::values::Timestamp::utc),
        bytes,
        &state.clock,
    ))
}

async fn post_one<R: Resource>(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    writer: Writer<R>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    media_type(&parts.headers, JSON, "application/json")?;
    let body = service
        .read_whole(store.holder(), &parts.headers, body, RECORD_BYTES)
        .await?;
    let dry_run = Query::read(parts.uri.query(), &["dry_run"])?.flag("dry_run")?;
    let mut write = read_put::<R>(&parse(&body)?, body.len(), &store, &service.state)?;
    drop(body);
    write.conditions = Conditions::of(&parts.headers);
    write_one(&service, &writer, write, dry_run).await
}

async fn patch_one<R: Resource>(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    writer: Writer<R>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let supported = "application/merge-patch+json or application/json";
    media_type(&parts.headers, PATCH_JSON, supported)?;
    let body = service
        .read_whole(store.holder(), &parts.headers, body, RECORD_BYTES)
        .await?;
    let segment = last_segment(parts.uri.path())?;
    let dry_run = Query::read(parts.uri.query(), &["dry_run"])?.flag("dry_run")?;
    let node = parse(&body)?;
    // A segment that can't be a key names no record; what is wrong with the body comes first.
    let key = R::path_keys(&segment).into_iter().next();
    let Some(key) = key else {
        let any = R::path_keys("-")
            .into_iter()
            .next()
            .ok_or(Error::NotFound)?;
        read_patch::<R>(&node, body.len(), any, &store, &service.state)?;
        return Err(Error::NotFound);
    };
    let mut write = read_patch::<R>(&node, body.len(), key, &store, &service.state)?;
    drop(node);
    drop(body);
    write.conditions = Conditions::of(&parts.headers);
    write_one(&service, &writer, write, dry_run).await
}

/// Writes one record and answers it.
async fn write_one<R: Resource>(
    service: &Service,
    writer: &Writer<R>,
    write: Write<R>,
    dry_run: bool,
) -> Result<Response, Error> {
    let store_id = write.store_id;
    let written = if dry_run {
        // Boxed where they are rare and large: a request's future is moved from layer to layer.
        let answers = Box::pin(dry_run_of(service, vec![write], Detail::Full)).await?;
        let only = answers.into_iter().next();
        only.ok_or_else(|| Error::internal("a write got no answer"))??
    } else {
        writer.single(write).await?
    };
    answer::<R>(written, store_id, dry_run)
}

/// Everything but the commit, in a transaction of its own, few at a time and not for long.
///
/// # Errors
/// `Overloaded` when there are too many or it takes too long; what a real write would answer.
pub async fn dry_run_of<R: Resource>(
    service: &Service,
    writes: Vec<Write<R>>,
    detail: Detail,
) -> Result<write::Answers<R>, Error> {
    let permit = Arc::clone(&service.dry_runs)
        .try_acquire_owned()
        .map_err(|_| Error::Overloaded)?;
    // A request is about one store.
    let holder = writes
        .first()
        .map_or(Holder::Nobody, |write| Holder::Store(write.store_id));
    let options = Options {
        detail,
        ending: Ending::DryRun,
        patience: Duration::ZERO,
        lock_wait: LockWait::Usual,
    };
    let work = |state: State| async move {
        let _place = permit;
        // Cutting this off is sound: the transaction closes its connection.
        let rehearsal = write::write(&state, &writes, options);
        tokio::time::timeout(DRY_RUN_TIME, rehearsal)
            .await
            .unwrap_or(Err(Error::Overloaded))
    };
    service.run(holder, work).await
}

/// The answer to a write.
fn answer<R: Resource>(
    written: Written<R>,
    store_id: i64,
    dry_run: bool,
) -> Result<Response, Error> {
    let is_new = written.outcome == Outcome::Created;
    let extra = written
        .extra
        .ok_or_else(|| Error::internal("an answer is incomplete"))?;
    let etag = etag(written.record.version)?;
    let location = match R::path_segment(&written.record.content) {
        Some(segment) if is_new && !dry_run => Some(location(store_id, R::PATH, segment)),
        _ => None,
    };
    // Its batch is over, so mostly nobody else holds it.
    let mut body = R::answer(Arc::unwrap_or_clone(written.record), extra);
    if dry_run {
        R::hide_ids(&mut body, is_new);
    }
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = json(status, &body)?;
    let headers = response.headers_mut();
    headers.insert(OUTCOME, HeaderValue::from_static(written.outcome.as_str()));
    headers.insert(header::ETAG, etag);
    if dry_run {
        headers.insert(DRY_RUN, HeaderValue::from_static("true"));
    }
    if let Some(location) = location {
        headers.insert(header::LOCATION, location.parse().map_err(Error::internal)?);
    }
    Ok(response)
}

fn etag(version: i64) -> Result<HeaderValue, Error> {
    HeaderValue::try_from(format!("\"{version}\"")).map_err(Error::internal)
}

/// A JSON answer.
///
/// # Errors
/// When it can't be written as JSON, which is a fault of ours.
pub fn json(status: StatusCode, body: &impl Serialize) -> Result<Response, Error> {
    let mut bytes = Vec::with_capacity(RECORD_ANSWER);
    serde_json::to_writer(&mut bytes, body).map_err(Error::internal)?;
    let kind = HeaderValue::from_static("application/json");
    Ok((status, [(header::CONTENT_TYPE, kind)], bytes).into_response())
}

/// The answer to an upsert of something that is no resource.
///
/// # Errors
/// When it can't be written, which is a fault of ours.
pub fn upserted(
    outcome: Outcome,
    body: &impl Serialize,
    location: &str,
) -> Result<Response, Error> {
    let is_new = outcome == Outcome::Created;
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = json(status, body)?;
    let headers = response.headers_mut();
    headers.insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
    if is_new {
        let location = location.parse().map_err(Error::internal)?;
        headers.insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The path of something of a store that is named by its external id.
#[must_use]
pub fn location(store_id: i64, path: &str, external_id: &str) -> String {
    let segment = utf8_percent_encode(external_id, SEGMENT);
    format!("/api/v1/stores/{store_id}/{path}/{segment}")
}

/// Reads the JSON body of a request that has no query.
///
/// # Errors
/// 415, 413, 503, 408 or 400.
pub async fn read_json(service: &Service, request: Request) -> Result<WholeBody, Error> {
    let (parts, body) = request.into_parts();
    media_type(&parts.headers, JSON, "application/json")?;
    let store = parts.extensions.get::<StoreAccess>();
    let holder = store.map_or(Holder::Nobody, StoreAccess::holder);
    let body = service
        .read_whole(holder, &parts.headers, body, RECORD_BYTES)
        .await?;
    Query::read(parts.uri.query(), &[])?;
    Ok(body)
}

/// A page of a list.
#[derive(Serialize)]
pub struct Listed<T> {
    data: Vec<T>,
    next_cursor: Option<String>,
}

impl<T> Listed<T> {
    /// The page of one entry more than was wanted, if there is one.
    pub fn of(mut data: Vec<T>, limit: u32, list: &List<'_>, id: impl Fn(&T) -> Uuid) -> Self {
        let limit = limit as usize;
        let has_more = data.len() > limit;
        data.truncate(limit);
        let next_after = data.last().filter(|_| has_more).map(id);
        Self::until(data, next_after, list)
    }

    /// The page of these entries, and where the next one begins.
    pub fn until(data: Vec<T>, next_after: Option<Uuid>, list: &List<'_>) -> Self {
        let next_cursor = next_after.map(|after| list.cursor(after));
        Self { data, next_cursor }
    }
}

/// Where a list goes on: behind the record that the cursor names, or at its beginning.
///
/// # Errors
/// `CursorInvalid` for a cursor that was altered or belongs to another list.
pub fn after(query: &Query, list: &List<'_>) -> Result<Uuid, Error> {
    let after = query.text("cursor").map(|cursor| list.after(cursor));
    Ok(after.transpose()?.unwrap_or(Uuid::nil()))
}

async fn get_one<R: Resource>(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let segment = last_segment(request.uri().path())?;
    Query::read(request.uri().query(), &[])?;
    let work = |state: State| async move { read::one::<R>(&state, store.store_id, &segment).await };
    let (record, extra) = service.run(store.holder(), work).await?;
    let etag = etag(record.version)?;
    let body = R::answer(Arc::unwrap_or_clone(record), extra);
    let mut response = json(StatusCode::OK, &body)?;
    response.headers_mut().insert(header::ETAG, etag);
    Ok(response)
}

async fn list<R: Resource>(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let known: &[&str] = if R::HAS_CUSTOMER {
        &["limit", "cursor", "id", "customer_external_id"]
    } else {
        &["limit", "cursor", "id"]
    };
    let query = Query::read(request.uri().query(), known)?;
    let id = query.parsed("id", "must be a UUID", |text| text.parse::<Uuid>().ok())?;
    let customer = query.text("customer_external_id").map(str::to_owned);
    let filters = format!("id={id:?}&customer={customer:?}");
    let limit = query.limit()?;
    let list = List {
        store_id: store.store_id,
        path: R::PATH,
        filters: &filters,
    };
    let after = after(&query, &list)?;
    let wanted = read::Wanted {
        store_id: store.store_id,
        after,
        through: Uuid::max(),
        limit,
        customer_id: None,
    };
    let narrowed = Narrowed { id, customer };
    // A page may be shorter than was asked for; the cursor goes on from there.
    let room = service.answers.room(store.holder());
    let most_bytes = (room / 2).clamp(SHORT_PAGE_BYTES, PAGE_BYTES);
    let work =
        |state: State| async move { page_of::<R>(&state, wanted, narrowed, most_bytes).await };
    let (mut body, next_after) = service.run(store.holder(), work).await?;
    let next_cursor = next_after.map(|after| list.cursor(after));
    body.extend_from_slice(b"],\"next_cursor\":");
    serde_json::to_writer(&mut body, &next_cursor).map_err(Error::internal)?;
    body.push(b'}');
    let kind = HeaderValue::from_static("application/json");
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, kind)], body).into_response())
}

/// Records that are read first for a page: each may have more than 1 MiB.
const FIRST_SLICE: u32 = 4;
/// Most records that are read at a time.
const MOST_IN_A_SLICE: u32 = 20;
/// Bytes that are read at a time, by what the records before had.
const SLICE_BYTES: usize = 1024 * 1024;
/// Bytes after which a page ends, however many records were asked for.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// The same while there is little room for answers: such an answer finds some in any case.
const SHORT_PAGE_BYTES: usize = 32 * 1024;

/// What a list is narrowed to, as it was sent.
struct Narrowed {
    id: Option<Uuid>,
    /// The external id of a customer.
    customer: Option<String>,
}

/// A page under the filters that were sent, as it is answered up to its last record, and the record
/// after which there is more. Two filters are met both.
async fn page_of<R: Resource>(
    state: &State,
    mut wanted: read::Wanted,
    narrowed: Narrowed,
    most_bytes: usize,
) -> Result<(Vec<u8>, Option<Uuid>), Error> {
    let mut body = b"{\"data\":[".to_vec();
    if let Some(external_id) = narrowed.customer {
        let found = R::customer_id(state, wanted.store_id, &external_id).await?;
        if found.is_none() {
            return Ok((body, None));
        }
        wanted.customer_id = found;
    }
    if let Some(id) = narrowed.id {
        wanted = wanted.only(id);
    }
    let mut left = wanted.limit;
    let mut slice = FIRST_SLICE;
    let mut read = 0;
    let mut last = None;
    loop {
        wanted.limit = left.min(slice);
        let page = read::page::<R>(state, &wanted).await?;
        for (record, extra) in page.records {
            let (id, before) = (record.id, body.len());
            if !body.ends_with(b"[") {
                body.push(b',');
            }
            let answer = R::answer(Arc::unwrap_or_clone(record), extra);
            serde_json::to_writer(&mut body, &answer).map_err(Error::internal)?;
            if body.len() > most_bytes && last.is_some() {
                // It begins the next page, which it may be alone.
                body.truncate(before);
                return Ok((body, last));
            }
            last = Some(id);
        }
        left -= wanted.limit;
        read += wanted.limit;
        // As many as there are in a slice's bytes if they are like those before.
        let alike = SLICE_BYTES * read as usize / body.len().max(1);
        slice = u32::try_from(alike)
            .unwrap_or(u32::MAX)
            .clamp(1, MOST_IN_A_SLICE);
        match page.next_after {
            Some(after) if left > 0 => wanted.after = after,
            next_after => return Ok((body, next_after)),
        }
    }
}

async fn list_events(
    Given(service): Given<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<Response, Error> {
    let query = Query::read(request.uri().query(), &["after", "limit", "resource"])?;
    let after = query.parsed("after", "must be a position, 0 or more", |text| {
        number::<i64>(text)
    })?;
    let resource = query.parsed("resource", "must be the path of a resource", |text| {
        service.paths.contains(&text).then(|| text.to_owned())
    })?;
    let limit = i64::from(query.limit()?);
    let wanted = events::Wanted {
        store_id: store.store_id,
        after,
        limit,
        resource,
    };
    let names = Arc::clone(&service.names);
    let work = |state: State| async move { events::read(&state, &wanted, &names).await };
    let feed: Feed = service.run(store.holder(), work).await?;
    json(StatusCode::OK, &feed)
}
