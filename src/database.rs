//! Connections to Postgres, with a deadline around every use of them.
//!
//! A connection can fall silent without being reset: a failover, a firewall that forgot it, a host
//! that stopped. Whoever waits for an answer on it would wait for ever. So each statement has a
//! deadline of ours, a little longer than the one that Postgres keeps itself: a server that can
//! still speak has spoken by then.
//!
//! ```text
//!  acquire ──▶ rests for a second or more? ping ──▶ statement ──▶ answered ──────▶ rests again
//!                  │ no answer                        │ deadline, or cut by a caller who left
//!                  ▼                                  ▼
//!          dropped, and all that rested        dropped at once: closed without a farewell, so
//!          for as long with it                 that Postgres ends what it does for us
//! ```
//!
//! A statement that is cut leaves its connection with an answer that nobody reads, or inside a
//! transaction that nobody ends. Such a connection is never used again, however the cut came about.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use deadpool::managed;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, Stream, TryStreamExt as _};
use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgDatabaseError, PgQueryResult, PgRow, PgSeverity, PgStatement,
    PgTypeInfo, Postgres,
};
use sqlx::{Connection as _, Describe, Either, Execute, Executor, SqlStr};
use tokio::time::Sleep;

/// A connection that rested longer is asked whether it still lives before it is used.
pub const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long the answer to that may take.
const PING: Duration = Duration::from_secs(1);
/// A connection that is older is replaced: its process of Postgres has grown by then.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 60);
/// The pause before a server that refuses connections is asked again, as it may be starting.
const RECONNECT: Duration = Duration::from_millis(50);

/// How many connections there are, and how long anything on them may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub max_connections: u32,
    /// How long a user waits for one.
    pub acquire: Duration,
    /// How long one statement may take, unless [`Connection::allow`] says otherwise.
    pub statement: Duration,
}

/// Connections to one database; clones share them.
#[derive(Clone)]
pub struct Database(managed::Pool<Opener, Lent>);

impl Database {
    /// Connects at the first use.
    #[must_use]
    pub fn new(options: PgConnectOptions, limits: Limits) -> Self {
        let opener = Opener {
            options,
            limits,
            silent_at: Mutex::default(),
        };
        let pool = managed::Pool::builder(opener)
            .max_size(limits.max_connections as usize)
            // The one that was used last: its process of Postgres has what it needs in its caches.
            .queue_mode(managed::QueueMode::Lifo)
            .build();
        Self(pool.expect("nothing is set that needs a runtime"))
    }

    /// A connection, in order of asking. It goes back when it is dropped.
    ///
    /// # Errors
    /// When none can be had in time.
    pub async fn acquire(&self) -> sqlx::Result<Lent> {
        let lent = tokio::time::timeout(self.limits().acquire, self.0.get());
        match lent.await {
            Ok(Ok(lent)) => Ok(lent),
            Ok(Err(managed::PoolError::Backend(error))) => Err(error),
            Ok(Err(managed::PoolError::Closed)) => Err(sqlx::Error::PoolClosed),
            Ok(Err(_)) | Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// Where it connects to.
    #[must_use]
    pub fn options(&self) -> &PgConnectOptions {
        &self.0.manager().options
    }

    /// How many connections there may be, and how long anything may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.0.manager().limits
    }

    /// Connections that exist.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.status().size
    }

    /// Connections that nobody uses.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.0.status().available
    }

    /// Closes the connections that rest, and the others as soon as they are given back.
    pub fn close(&self) {
        self.0.close();
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

/// Makes connections, and judges those that rested.
struct Opener {
    options: PgConnectOptions,
    limits: Limits,
    /// When a connection was last found silent.
    silent_at: Mutex<Option<Instant>>,
}

impl Opener {
    fn note_silence(&self) {
        let mut silent_at = self
            .silent_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *silent_at = Some(Instant::now());
    }

    /// Whether a connection has not been used since another one was found silent: it may have met
    /// the same fate, and asking one after the other would take a second each.
    fn is_doubtful(&self, used: Instant) -> bool {
        let silent_at = self
            .silent_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        silent_at.is_some_and(|silent_at| used <= silent_at)
    }
}

impl managed::Manager for Opener {
    type Type = Connection;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<Connection> {
        loop {
            match PgConnection::connect_with(&self.options).await {
                Ok(raw) => return Ok(Connection::new(raw, self.limits.statement)),
                Err(error) if is_starting(&error) => tokio::time::sleep(RECONNECT).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn recycle(
        &self,
        connection: &mut Connection,
        metrics: &managed::Metrics,
    ) -> managed::RecycleResult<sqlx::Error> {
        let used = metrics.recycled.unwrap_or(metrics.created);
        let is_of_no_use =
            connection.is_cut || self.is_doubtful(used) || metrics.age() > LONGEST_LIFE;
        if is_of_no_use {
            return Err(managed::RecycleError::message("not used again"));
        }
        connection.allowed = self.limits.statement;
        if used.elapsed() > TRUSTED_IDLE {
            let answer = tokio::time::timeout(PING, connection.raw.ping()).await;
            let answer = answer.unwrap_or_else(|_| {
                self.note_silence();
                Err(silent())
            });
            answer.map_err(managed::RecycleError::Backend)?;
        }
        Ok(())
    }
}

/// Whether a server may be starting, or have no connection left for now.
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P03" | "53300"))
        }
        _ => false,
    }
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(
        io::ErrorKind::TimedOut,
        "the database did not answer in time",
    ))
}

/// A connection that somebody uses.
pub struct Lent(Option<managed::Object<Opener>>);

impl From<managed::Object<Opener>> for Lent {
    fn from(object: managed::Object<Opener>) -> Self {
        Self(Some(object))
    }
}

/// Why there is always one.
const LENT: &str = "it is taken by the drop alone";

impl Deref for Lent {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect(LENT)
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.as_mut().expect(LENT)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(object) = self.0.take().filter(|object| object.is_cut) else {
            return;
        };
        if object.is_silent
            && let Some(pool) = managed::Object::pool(&object)
        {
            pool.manager().note_silence();
        }
        // Closed now, not when somebody looks for one that rests: it may hold locks.
        drop(managed::Object::take(object));
    }
}

/// A connection whose statements have a deadline.
pub struct Connection {
    raw: PgConnection,
    /// How long a statement may take.
    allowed: Duration,
    deadline: Pin<Box<Sleep>>,
    /// A statement was begun and its answer not read to its end, or a transaction has to be undone.
    is_cut: bool,
    /// A deadline has passed.
    is_silent: bool,
}

impl Connection {
    fn new(raw: PgConnection, allowed: Duration) -> Self {
        Self {
            raw,
            allowed,
            deadline: Box::pin(tokio::time::sleep(Duration::ZERO)),
            is_cut: false,
            is_silent: false,
        }
    }

    /// From now on, until it is given back, a statement may take so long.
    pub fn allow(&mut self, statement: Duration) {
        self.allowed = statement;
    }

    /// It is not used again: what is open on it is undone by Postgres.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// A statement begins.
    fn begin(&mut self) -> (&mut PgConnection, Watch<'_>) {
        self.is_cut = true;
        let until = tokio::time::Instant::now() + self.allowed;
        self.deadline.as_mut().reset(until);
        let watch = Watch {
            deadline: self.deadline.as_mut(),
            is_cut: &mut self.is_cut,
            is_silent: &mut self.is_silent,
        };
        (&mut self.raw, watch)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A statement's deadline, and where its end is noted.
struct Watch<'c> {
    deadline: Pin<&'c mut Sleep>,
    is_cut: &'c mut bool,
    is_silent: &'c mut bool,
}

impl Watch<'_> {
    /// The statement has ended like this.
    fn ended<T>(&mut self, result: &sqlx::Result<T>) {
        *self.is_cut = match result {
            Ok(_) => false,
            // Postgres said so, and goes on unless it said that it ends.
            Err(sqlx::Error::Database(error)) => {
                let error = error.try_downcast_ref::<PgDatabaseError>();
                error.is_none_or(|error| !matches!(error.severity(), PgSeverity::Error))
            }
            Err(_) => true,
        };
    }

    /// Ready when the time is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<sqlx::Error> {
        self.deadline.as_mut().poll(cx).map(|()| {
            *self.is_silent = true;
            silent()
        })
    }

    async fn over<T>(
        mut self,
        mut answer: impl Future<Output = sqlx::Result<T>> + Unpin,
    ) -> sqlx::Result<T> {
        std::future::poll_fn(|cx| match Pin::new(&mut answer).poll(cx) {
            Poll::Ready(result) => {
                self.ended(&result);
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_over(cx).map(Err),
        })
        .await
    }
}

/// What a statement answers.
type Answered = Either<PgQueryResult, PgRow>;

/// The rows of a statement as they come, until its deadline.
struct Rows<'c> {
    rows: BoxStream<'c, sqlx::Result<Answered>>,
    watch: Watch<'c>,
    has_ended: bool,
}

impl Stream for Rows<'_> {
    type Item = sqlx::Result<Answered>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let next = match this.rows.as_mut().poll_next(cx) {
            Poll::Ready(Some(Ok(answered))) => return Poll::Ready(Some(Ok(answered))),
            Poll::Ready(next) => {
                let result = next.map_or(Ok(()), |error| error.map(|_| ()));
                this.watch.ended(&result);
                result.err()
            }
            Poll::Pending => match this.watch.poll_over(cx) {
                Poll::Ready(error) => Some(error),
                Poll::Pending => return Poll::Pending,
            },
        };
        this.has_ended = true;
        Poll::Ready(next.map(Err))
    }
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Answered>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (raw, watch) = self.begin();
        Box::pin(Rows {
            rows: raw.fetch_many(query),
            watch,
            has_ended: false,
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (raw, watch) = self.begin();
        Box::pin(watch.over(raw.fetch_optional(query)))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        let (raw, watch) = self.begin();
        Box::pin(watch.over(raw.prepare_with(sql, parameters)))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        let (raw, watch) = self.begin();
        Box::pin(watch.over(raw.describe(sql)))
    }
}

/// A statement on a connection of its own.
impl<'p> Executor<'p> for &'p Database {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Answered>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        // Read whole, so that a slow reader holds no connection.
        let all = async move {
            let mut connection = self.acquire().await?;
            let rows = (*connection).fetch_many(query);
            let all: Vec<Answered> = rows.try_collect().await?;
            Ok::<_, sqlx::Error>(stream::iter(all.into_iter().map(Ok)))
        };
        Box::pin(stream::once(all).try_flatten())
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move { self.acquire().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.acquire().await?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.acquire().await?.describe(sql).await })
    }
}
