//! Many records in one request: a JSON document of at most 1,000, or a stream of lines of any
//! length, each with an honest outcome of its own.
//!
//! ```text
//!  request body ──▶ lines ──▶ slice ──▶ its lane ──▶ result lines ──▶ response body
//!                   ≤ 1 MiB   ≤ a batch, ≤ 1 MiB     bounded channel
//! ```
//!
//! A stream holds three slices in memory: two are written while the next one arrives. A slice is what
//! has arrived: it never waits for more to come while nothing is under way. While the client doesn't
//! read, the channel is full and nothing more is taken from the socket, so a slow client slows itself
//! down and nobody else.

use std::collections::{BTreeMap, HashSet};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::Instrument as _;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Resource;
use super::group_commit::{Patience, Slice, Writer};
use super::http::{Query, RECORD_BYTES, Service, dry_run_of, json, read_put};
use super::lines::{Line, Lines, Taken};
use super::request::Conditions;
use super::write::{self, Answers, Detail, Outcome, Write};
use crate::auth::StoreAccess;
use crate::edge::{self, Permit, Portion, media_type};
use crate::error::Error;
use crate::state::State;
use crate::values::{Faults, Part, outline, parse};

/// Most bytes of a JSON document.
const DOCUMENT_BYTES: usize = 16 * 1024 * 1024;
/// Most items of a JSON document.
const MOST_ITEMS: usize = 1_000;
/// Bytes after which a slice takes no more lines.
const SLICE_BYTES: usize = 1024 * 1024;
/// How long a stream waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Slices of one stream that are written at a time.
const MOST_UNDER_WAY: usize = 2;
/// Result chunks that wait for a client to read.
const MOST_UNREAD: usize = 2;

const TYPES: &[&str] = &["application/json", "application/x-ndjson"];

/// What one item came to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BulkResult)]
pub struct ItemResult {
    /// Its place in the request, from 0; blank lines don't count.
    index: u64,
    /// As it was sent; null if it could not be read.
    #[schema(required)]
    external_id: Option<String>,
    /// The status that a single write would have had.
    status: u16,
    /// `created`, `updated`, `unchanged`, `stale` or `failed`.
    #[schema(value_type = BulkOutcome)]
    outcome: &'static str,
    /// The record's id; null if there is none.
    #[schema(required)]
    id: Option<Uuid>,
    /// Of a failed item: the stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// Of a failed item: its faulty fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<BTreeMap<String, Vec<String>>>,
}

/// What an item can come to.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum BulkOutcome {
    /// The key was new.
    Created,
    /// The content differed.
    Updated,
    /// The content is what was there already.
    Unchanged,
    /// The record has been changed later in the caller's own system.
    Stale,
    /// Nothing was stored; `code` says why.
    Failed,
}

/// How many items came to what.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[schema(as = BulkSummary)]
pub struct Summary {
    created: u64,
    updated: u64,
    unchanged: u64,
    stale: u64,
    failed: u64,
}

/// The answer to a JSON document.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkAnswer {
    summary: Summary,
    /// In the order of the request.
    results: Vec<ItemResult>,
}

/// The last line of a stream's answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BulkEnd)]
pub struct End {
    summary: Summary,
    /// Whether every line of the request was answered.
    complete: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// An item of a request.
struct Item<R: Resource> {
    external_id: Option<String>,
    write: Result<Write<R>, Error>,
}

/// The route of a resource.
pub fn route<R: Resource>(writer: Writer<R>) -> MethodRouter<Service> {
    post(move |service, store, request| bulk::<R>(service, store, writer, request))
}

async fn bulk<R: Resource>(
    Shared(service): Shared<Service>,
    Extension(store): Extension<StoreAccess>,
    writer: Writer<R>,
    request: Request,
) -> Result<Response, Error> {
    let supported = "application/json or application/x-ndjson";
    let kind = media_type(request.headers(), TYPES, supported)?;
    if kind == "application/json" {
        Box::pin(document::<R>(&service, store, writer, request)).await
    } else {
        stream::<R>(service, store, writer, request)
    }
}

fn refuse_conditions(headers: &http::HeaderMap) -> Result<(), Error> {
    if Conditions::of(headers).is_empty() {
        Ok(())
    } else {
        Err(Error::PreconditionOnBulk)
    }
}

async fn document<R: Resource>(
    service: &Service,
    store: StoreAccess,
    writer: Writer<R>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let body = service
        .read_whole(store.holder(), &parts.headers, body, DOCUMENT_BYTES)
        .await?;
    let query = Query::read(parts.uri.query(), &["atomic", "dry_run"])?;
    let (atomic, dry_run) = (query.flag("atomic")?, query.flag("dry_run")?);
    refuse_conditions(&parts.headers)?;
    let place = service.bulk_gate.enter(store.holder()).await?;
    let state = service.state.clone();
    // Reading 16 MiB takes long enough to hold up other requests of this thread.
    let reading = tokio::task::spawn_blocking(move || {
        let items = read_document::<R>(&body, &store, &state);
        // What was made of it takes as much, until it is written.
        (items, body.into_held())
    });
    let (items, held) = reading.await.map_err(Error::internal)?;
    let items = items?;
    let (kept, writes) = sorted_out(items);
    if atomic {
        all_valid(&kept)?;
    }
    let answers = if dry_run {
        Box::pin(dry_run_of(service, writes, Detail::Brief)).await?
    } else {
        let work = async move {
            let _held = (place, held);
            if atomic {
                writer.whole(writes).await
            } else {
                in_slices(&writer, writes).await
            }
        };
        service.uncut(work).await?
    };
    let mut response = json(StatusCode::OK, &report::<R>(kept, answers, dry_run)?)?;
    if dry_run {
        response
            .headers_mut()
            .insert("keyfold-dry-run", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// An item that could not be read keeps its place by its error; the others are written.
type Kept = Vec<(Option<String>, Option<Error>)>;

fn sorted_out<R: Resource>(items: Vec<Item<R>>) -> (Kept, Vec<Write<R>>) {
    let mut writes = Vec::with_capacity(items.len());
    let kept = items
        .into_iter()
        .map(|item| {
            let fault = item.write.map(|write| writes.push(write)).err();
            (item.external_id, fault)
        })
        .collect();
    (kept, writes)
}

/// Writes a document slice by slice, each after the answers of the one before, so that others get
/// their turns. A slice that fails leaves the others their own outcomes.
async fn in_slices<R: Resource>(
    writer: &Writer<R>,
    writes: Vec<Write<R>>,
) -> Result<Answers<R>, Error> {
    let mut writes = writes.into_iter().peekable();
    let mut answers = Vec::with_capacity(writes.len());
    let mut failure = None;
    while writes.peek().is_some() {
        let slice: Vec<_> = writes.by_ref().take(writer.most_batch()).collect();
        let slice = writer.slice(slice, Patience::Short).await;
        answers.extend(slice.answers);
        failure = slice.failure.or(failure);
    }
    match failure {
        // Nothing went well for any: that is the answer to the whole.
        Some(failure) if answers.iter().all(Result::is_err) => Err(Error::Shared(failure)),
        _ => Ok(answers),
    }
}

fn read_document<R: Resource>(
    body: &[u8],
    store: &StoreAccess,
    state: &State,
) -> Result<Vec<Item<R>>, Error> {
    let invalid = |path: &str, message: &str| Error::Invalid(Faults::at(path, message));
    let members = outline(body, MOST_ITEMS)?.ok_or_else(|| invalid("", "must be an object"))?;
    let mut faults = Faults::default();
    let mut texts = None;
    for (name, part) in members {
        match part {
            Part::Items(items) if name == "items" => texts = Some(items),
            Part::Other if name == "items" => faults.add("items", "must be an array"),
            _ => faults.add(
                name.chars().take(100).collect::<String>(),
                "is not a known field",
            ),
        }
    }
    if texts.is_none() && !faults.as_map().contains_key("items") {
        faults.add("items", "is required");
    }
    if texts.as_ref().is_some_and(|items| items.len() > MOST_ITEMS) {
        faults.add("items", format!("must have at most {MOST_ITEMS} items"));
    }
    faults.into_result().map_err(Error::Invalid)?;
    let texts = texts.unwrap_or_default();
    Ok(texts
        .into_iter()
        .map(|text| read_item(text.as_bytes(), store, state))
        .collect())
}

/// Reads one item exactly as a single write would be read.
fn read_item<R: Resource>(text: &[u8], store: &StoreAccess, state: &State) -> Item<R> {
    if text.len() > RECORD_BYTES {
        return Item {
            external_id: None,
            write: Err(Error::BodyTooLarge {
                limit_bytes: RECORD_BYTES,
            }),
        };
    }
    match parse(text) {
        Ok(node) => {
            let external_id = node
                .member("external_id")
                .and_then(|id| id.short_text(255))
                .map(str::to_owned);
            Item {
                external_id,
                write: read_put::<R>(&node, text.len(), store, state),
            }
        }
        Err(error) => Item {
            external_id: None,
            write: Err(error.into()),
        },
    }
}

/// For all or nothing: every fault of every item at once.
fn all_valid(items: &[(Option<String>, Option<Error>)]) -> Result<(), Error> {
    let mut faults = Faults::default();
    for (at, (_, error)) in items.iter().enumerate() {
        let Some(error) = error else { continue };
        let path = format!("items.{at}");
        match error.faults() {
            Some(inner) => faults.nest(&path, inner.clone()),
            None => faults.add(path, error.detail()),
        }
    }
    faults.into_result().map_err(Error::Invalid)
}

/// The answer to a document: items that could not be read among those that were written.
fn report<R: Resource>(
    items: Kept,
    answers: Answers<R>,
    dry_run: bool,
) -> Result<BulkAnswer, Error> {
    let mut made = HashSet::new();
    let mut answers = answers.into_iter();
    let mut summary = Summary::default();
    let mut results = Vec::with_capacity(items.len());
    for (index, (external_id, fault)) in (0..).zip(items) {
        let answer = match fault {
            Some(error) => Err(error),
            None => answers
                .next()
                .ok_or_else(|| Error::internal("an item got no answer"))?,
        };
        let mut result = ItemResult::of::<R>(index, external_id, answer);
        if dry_run && result.outcome == Outcome::Created.as_str() {
            made.extend(result.id);
        }
        // A later item of the same key means the same record, which is not there yet.
        result.id = result.id.filter(|id| !made.contains(id));
        summary.count(result.outcome);
        results.push(result);
    }
    Ok(BulkAnswer { summary, results })
}

impl ItemResult {
    fn of<R: Resource>(
        index: u64,
        external_id: Option<String>,
        answer: Result<write::Written<R>, Error>,
    ) -> Self {
        match answer {
            Ok(written) => {
                let is_new = written.outcome == Outcome::Created;
                Self {
                    index,
                    external_id,
                    status: if is_new { 201 } else { 200 },
                    outcome: written.outcome.as_str(),
                    id: Some(written.record.id),
                    code: None,
                    errors: None,
                }
            }
            Err(error) => Self {
                index,
                external_id,
                status: error.status().as_u16(),
                outcome: "failed",
                id: None,
                code: Some(error.code()),
                errors: error.faults().map(|faults| faults.as_map().clone()),
            },
        }
    }
}

impl Summary {
    fn count(&mut self, outcome: &str) {
        let counter = match outcome {
            "created" => &mut self.created,
            "updated" => &mut self.updated,
            "unchanged" => &mut self.unchanged,
            "stale" => &mut self.stale,
            _ => &mut self.failed,
        };
        *counter += 1;
    }
}

/// Which results a client wants to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Results {
    All,
    Failed,
}

fn stream<R: Resource>(
    service: Service,
    store: StoreAccess,
    writer: Writer<R>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let chunks = edge::stream(body, &parts.headers)?;
    let query = Query::read(parts.uri.query(), &["results"])?;
    let wanted = query.parsed("results", "must be all or failed", |text| match text {
        "all" => Some(Results::All),
        "failed" => Some(Results::Failed),
        _ => None,
    })?;
    refuse_conditions(&parts.headers)?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(MOST_UNREAD);
    let tasks = service.state.tasks.clone();
    let open = service.streams.take(store.holder(), 1)?;
    let held = service.bodies.take(store.holder(), 0)?;
    let lines = Lines::new(chunks, RECORD_BYTES, held);
    let run = Stream {
        service,
        store,
        writer,
        _open: open,
        report: Report {
            wanted: wanted.unwrap_or(Results::All),
            results: sender,
            summary: Summary::default(),
            next_index: 0,
        },
    };
    tasks.spawn(run.finish(lines).instrument(tracing::Span::current()));
    let kind = HeaderValue::from_static("application/x-ndjson");
    let body = Body::from_stream(Unread(receiver));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, kind)], body).into_response())
}

/// The receiving end as a stream.
struct Unread(mpsc::Receiver<Result<Bytes, std::io::Error>>);

impl futures_util::Stream for Unread {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// A stream on its way.
struct Stream<R: Resource> {
    service: Service,
    store: StoreAccess,
    writer: Writer<R>,
    /// One of those that may be open.
    _open: Portion,
    report: Report,
}

/// What the client is told.
struct Report {
    wanted: Results,
    results: mpsc::Sender<Result<Bytes, std::io::Error>>,
    summary: Summary,
    next_index: u64,
}

/// Why a stream ended early.
enum Stop {
    /// Nobody reads the answer any more.
    Deaf,
    /// The rest of the request can't be answered.
    Because(Error),
}

/// The items of a slice, and what came of those that were written.
type Written<R> = (Kept, Slice<R>);

/// Slices that are being written, in the order of the stream.
type UnderWay<R> = FuturesOrdered<Pin<Box<dyn Future<Output = Written<R>> + Send>>>;

/// Lines that wait to be a slice.
#[derive(Default)]
struct Waiting {
    lines: Vec<Line>,
    bytes: usize,
    /// The memory that they take.
    held: Vec<Portion>,
}

impl<R: Resource> Stream<R> {
    async fn finish<S>(mut self, lines: Lines<S>)
    where
        S: futures_util::Stream<Item = Result<Bytes, Error>> + Unpin + Send + 'static,
    {
        let code = match self.all(lines).await {
            Ok(()) => None,
            Err(Stop::Deaf) => return,
            Err(Stop::Because(error)) => Some(error.code()),
        };
        self.report.end(code).await;
    }

    /// Slice after slice, answered in order. One goes at once when none is under way; beside another
    /// one only as a whole batch, since until then more can come at no cost. That a key comes in both
    /// is no matter: the queue keeps their order.
    async fn all<S>(&mut self, mut lines: Lines<S>) -> Result<(), Stop>
    where
        S: futures_util::Stream<Item = Result<Bytes, Error>> + Unpin + Send + 'static,
    {
        let shutdown = self.service.state.shutdown.clone();
        let most = self.writer.most_batch();
        let mut under_way: UnderWay<R> = FuturesOrdered::new();
        let mut waiting = Waiting::default();
        let mut place = Weak::new();
        let mut end = None;
        while end.is_none() {
            // Asked for at least something: it is polled only when there is room, and an empty answer
            // means the end.
            let count = most.saturating_sub(waiting.lines.len()).max(1);
            let room = SLICE_BYTES.saturating_sub(waiting.bytes).max(1);
            let mut reading = pin!(lines.take(count, room));
            let read = loop {
                let is_full = waiting.lines.len() >= most || waiting.bytes >= SLICE_BYTES;
                let begins = if is_full { MOST_UNDER_WAY } else { 1 };
                if !waiting.lines.is_empty() && under_way.len() < begins {
                    self.begin(std::mem::take(&mut waiting), &mut under_way, &mut place)
                        .await;
                    continue;
                }
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break Err(Error::Overloaded),
                    Some(written) = under_way.next(), if !under_way.is_empty() => {
                        self.report.slice(written).await?;
                    }
                    read = &mut reading, if !is_full => break read,
                }
            };
            match read {
                Ok(taken) if taken.lines.is_empty() => end = Some(Ok(())),
                Ok(taken) => waiting.add(taken),
                Err(error) => end = Some(Err(Stop::Because(error))),
            }
        }
        // What came whole before the end is written, also when the end is a fault.
        loop {
            while let Some(written) = under_way.next().await {
                self.report.slice(written).await?;
            }
            if waiting.lines.is_empty() {
                return end.unwrap_or(Ok(()));
            }
            self.begin(std::mem::take(&mut waiting), &mut under_way, &mut place)
                .await;
        }
    }

    /// Reads a slice and puts it into the queue. All slices of a stream that are under way share one
    /// place among the bulk requests, and it is free again when the last of them is written, whether
    /// or not the client reads what came of them.
    async fn begin(&self, waiting: Waiting, under_way: &mut UnderWay<R>, place: &mut Weak<Permit>) {
        let (kept, writes) = self.read(waiting.lines);
        drop(waiting.held);
        if writes.is_empty() {
            under_way.push_back(Box::pin(std::future::ready((kept, Slice::default()))));
            return;
        }
        let held = match place.upgrade() {
            Some(held) => held,
            None => match self.enter().await {
                Ok(entered) => Arc::new(entered),
                Err(error) => {
                    let slice = Slice::failed(writes.len(), error);
                    under_way.push_back(Box::pin(std::future::ready((kept, slice))));
                    return;
                }
            },
        };
        *place = Arc::downgrade(&held);
        let slice = self.writer.slice(writes, Patience::Long);
        let written = self.service.state.tasks.spawn(async move {
            let _held = held;
            slice.await
        });
        let written = async move { (kept, written.await.unwrap_or_default()) };
        under_way.push_back(Box::pin(written));
    }

    /// A place among the bulk requests.
    async fn enter(&self) -> Result<Permit, Error> {
        let (gate, holder) = (&self.service.bulk_gate, self.store.holder());
        gate.enter_patiently(holder, PATIENCE).await
    }

    /// Reads the lines of a slice.
    fn read(&self, lines: Vec<Line>) -> (Kept, Vec<Write<R>>) {
        let too_long = || Error::BodyTooLarge {
            limit_bytes: RECORD_BYTES,
        };
        let items = lines.into_iter().map(|line| match line {
            Line::Text(text) => read_item(&text, &self.store, &self.service.state),
            Line::TooLong => Item {
                external_id: None,
                write: Err(too_long()),
            },
        });
        sorted_out(items.collect())
    }
}

impl Waiting {
    fn add(&mut self, Taken { lines, held }: Taken) {
        let bytes = |line: &Line| match line {
            Line::Text(text) => text.len(),
            Line::TooLong => 0,
        };
        self.bytes += lines.iter().map(bytes).sum::<usize>();
        self.lines.extend(lines);
        self.held.push(held);
    }
}

impl Report {
    /// Sends the results of a slice. A failure that is none of its items' ends the stream.
    async fn slice<R: Resource>(&mut self, (kept, slice): Written<R>) -> Result<(), Stop> {
        self.results(kept, slice.answers).await?;
        match slice.failure {
            None => Ok(()),
            Some(failure) => Err(Stop::Because(Error::Shared(failure))),
        }
    }

    async fn results<R: Resource>(&mut self, items: Kept, answers: Answers<R>) -> Result<(), Stop> {
        let mut answers = answers.into_iter();
        let mut text = Vec::new();
        for (external_id, fault) in items {
            let answer = match fault {
                Some(error) => Err(error),
                None => answers
                    .next()
                    .unwrap_or_else(|| Err(Error::internal("no answer"))),
            };
            let result = ItemResult::of::<R>(self.next_index, external_id, answer);
            self.next_index += 1;
            self.summary.count(result.outcome);
            if self.wanted == Results::All || result.outcome == "failed" {
                serde_json::to_writer(&mut text, &result).unwrap_or_default();
                text.push(b'\n');
            }
        }
        if text.is_empty() {
            return if self.results.is_closed() {
                Err(Stop::Deaf)
            } else {
                Ok(())
            };
        }
        self.results
            .send(Ok(text.into()))
            .await
            .map_err(|_| Stop::Deaf)
    }

    /// Sends the last line.
    async fn end(self, code: Option<&'static str>) {
        let end = End {
            summary: self.summary,
            complete: code.is_none(),
            code,
        };
        let mut line = serde_json::to_vec(&end).unwrap_or_default();
        line.push(b'\n');
        let _ = self.results.send(Ok(line.into())).await;
    }
}
