//! `Idempotency-Key`: a send that is repeated is answered again, not sent again.
//!
//! ```text
//!  request ─ wait for others with this key, in memory (5 s, else 409 in use)
//!    └ begin
//!        claim: insert the key ──┬─ inserted ──────────► execute, save the answer, commit
//!          (250 ms for the lock, │
//!           else try again       ├─ there, expired ────► take over, execute, save, commit
//!           without connection)  ├─ there, other body ─► 409 mismatch
//!                                └─ there ─────────────► the saved answer
//! ```
//!
//! Claim, effect and answer are one transaction, so there is no moment at which a key is known
//! without its answer, or an effect without its key: a row of another transaction is seen with its
//! answer or not at all. Whoever comes while the first is at work waits for the lock of the row that
//! the first inserts; within one process they wait in memory instead, so that retries of one slow key
//! never hold more than one connection.
//!
//! Keys belong to a store and an endpoint, not to an API key: rotating that keeps replays working.
//! The same request is one whose body has the same SHA-256, byte for byte.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use sqlx::PgExecutor;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::database::Connection;
use crate::engine::http::IDEMPOTENCY_KEY;
use crate::error::Error;
use crate::state::State;

/// Marks an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Characters of a key.
const MOST_KEY_CHARS: usize = 255;
/// Rows deleted at a time.
const SLICE: i64 = 1_000;

/// The two endpoints that honour a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /messages/send`
    Send,
    /// `POST /templates`
    Templates,
}

impl Endpoint {
    /// As it is stored and answered.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Templates => "templates",
        }
    }

    /// Reads what stands in a path.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Send, Self::Templates]
            .into_iter()
            .find(|endpoint| endpoint.as_str() == text)
    }
}

/// A key of 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of a request, if it has one.
    ///
    /// # Errors
    /// `IdempotencyKeyInvalid` for one that is empty, too long or has other characters, and for two.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(Error::IdempotencyKeyInvalid);
        }
        let text = value.to_str().map_err(|_| Error::IdempotencyKeyInvalid)?;
        // The draft of the header (draft-ietf-httpapi-idempotency-key-header) writes it quoted.
        let quoted = text
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        Self::parse(quoted.unwrap_or(text))
            .map(Some)
            .ok_or(Error::IdempotencyKeyInvalid)
    }

    /// A key without quotes around it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MOST_KEY_CHARS).contains(&text.len())
            && text.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        fits.then(|| Self(text.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a key is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Whose it is.
    pub store_id: i64,
    /// Where it was sent.
    pub endpoint: Endpoint,
    /// The key.
    pub key: Key,
}

/// A finished answer: what a replay repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: String,
    /// `Location`.
    pub location: Option<String>,
    /// Byte for byte.
    pub body: Bytes,
}

impl Answer {
    /// The answer as a response, marked if it was given before.
    ///
    /// # Errors
    /// When a stored header is none, which is a fault of ours.
    pub fn into_response(self, times: Times) -> Result<Response, Error> {
        let mut response = (self.status, self.body).into_response();
        let headers = response.headers_mut();
        let value = |text: &str| HeaderValue::try_from(text).map_err(Error::internal);
        headers.insert(header::CONTENT_TYPE, value(&self.content_type)?);
        if let Some(location) = &self.location {
            headers.insert(header::LOCATION, value(location)?);
        }
        if times == Times::Again {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        Ok(response)
    }
}

/// Whether an answer is given for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// It is.
    First,
    /// It was given before.
    Again,
}

/// What became of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The key is ours: execute, then [`save`] the answer in the same transaction.
    GoOn,
    /// It was answered before; for the first time, where an earlier attempt of this very request did it
    /// and its commit got no answer.
    Saved(Answer, Times),
    /// It was sent with another body.
    Mismatch,
    /// It was there and went away while we looked: to be claimed again.
    Vanished,
}

/// Claims a key in the transaction of the send, under an id that is the same over all attempts of one
/// request. Waits for another transaction that has it no longer
/// than the `lock_timeout` of this one.
///
/// # Errors
/// When the database fails; SQLSTATE 55P03 means that the key is in use elsewhere.
pub async fn claim(
    connection: &mut Connection,
    name: &Name,
    body_sha256: &[u8; 32],
    new_id: Uuid,
    times: Retention,
) -> sqlx::Result<Claim> {
    let inserted = sqlx::query!(
        "insert into idempotency_keys (store_id, id, endpoint, key, body_sha256, first_seen_at)
        values ($1, $2, $3, $4, $5, $6)
        on conflict (store_id, endpoint, key) do nothing",
        name.store_id,
        new_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        &body_sha256[..],
        times.now,
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if inserted == 1 || take_over(connection, name, body_sha256, new_id, times).await? {
        return Ok(Claim::GoOn);
    }
    let found = sqlx::query!(
        r#"update idempotency_keys
        set replays = replays + case when body_sha256 = $4 and id <> $5 then 1 else 0 end
        where store_id = $1 and endpoint = $2 and key = $3
        returning
            body_sha256 = $4 as "same!", id = $5 as "own!", status as "status!", content_type as "content_type!",
            location, body as "body!""#,
        name.store_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        &body_sha256[..],
        new_id,
    )
    .fetch_optional(connection)
    .await?;
    let Some(found) = found else {
        return Ok(Claim::Vanished);
    };
    if !found.same {
        return Ok(Claim::Mismatch);
    }
    let status = u16::try_from(found.status).unwrap_or(500);
    let answer = Answer {
        status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        content_type: found.content_type,
        location: found.location,
        body: found.body.into(),
    };
    let times = if found.own {
        Times::First
    } else {
        Times::Again
    };
    Ok(Claim::Saved(answer, times))
}

/// Takes over a key whose time is over, as if it were new.
async fn take_over(
    connection: &mut Connection,
    name: &Name,
    body_sha256: &[u8; 32],
    new_id: Uuid,
    times: Retention,
) -> sqlx::Result<bool> {
    let taken = sqlx::query!(
        "update idempotency_keys
        set id = $4,
            body_sha256 = $5,
            first_seen_at = $6,
            replays = 0,
            status = null,
            content_type = null,
            location = null,
            body = null,
            message_id = null
        where store_id = $1 and endpoint = $2 and key = $3 and first_seen_at <= $7",
        name.store_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        new_id,
        &body_sha256[..],
        times.now,
        times.expired_before(),
    )
    .execute(connection)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Saves the answer of a claimed key, in the transaction of its effect.
///
/// # Errors
/// When the database fails.
pub async fn save(
    connection: &mut Connection,
    name: &Name,
    answer: &Answer,
    message_id: Option<Uuid>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update idempotency_keys
        set status = $4, content_type = $5, location = $6, body = $7, message_id = $8
        where store_id = $1 and endpoint = $2 and key = $3",
        name.store_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        i16::try_from(answer.status.as_u16()).unwrap_or(500),
        answer.content_type,
        answer.location,
        &answer.body[..],
        message_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How long keys count, and when it is.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Now.
    pub now: DateTime<Utc>,
    /// From the first request on.
    pub kept: TimeDelta,
}

impl Retention {
    /// By the settings and the clock.
    #[must_use]
    pub fn of(state: &State) -> Self {
        Self {
            now: state.clock.now(),
            kept: TimeDelta::hours(i64::from(state.config.idempotency_retention_hours)),
        }
    }

    /// Keys first seen at or before this are new again.
    fn expired_before(self) -> DateTime<Utc> {
        self.now - self.kept
    }
}

/// A key in the log: never a body.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = IdempotencyKey)]
pub struct Entry {
    /// The place in the log.
    #[serde(skip)]
    #[schema(ignore)]
    pub id: Uuid,
    /// `send` or `templates`.
    #[schema(example = "send")]
    pub endpoint: String,
    /// As it was sent, without quotes around it.
    pub key: String,
    /// When the first request with it came.
    pub first_seen_at: DateTime<Utc>,
    /// From then on it is new again.
    pub expires_at: DateTime<Utc>,
    /// How often its answer was repeated.
    pub replays: i64,
    /// Of the answer.
    #[schema(example = 201)]
    pub status: i32,
    /// The message that it led to; null for a refusal.
    pub message_id: Option<Uuid>,
}

/// Keys of a store that still count, after one of them, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: impl PgExecutor<'_>,
    store_id: i64,
    after: Uuid,
    limit: i64,
    times: Retention,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        r#"select
            id, endpoint, key, first_seen_at, first_seen_at + $5::interval as "expires_at!",
            replays, status::integer as "status!", message_id
        from idempotency_keys
        where store_id = $1 and id > $2 and first_seen_at > $3 and status is not null
        order by id
        limit $4"#,
        store_id,
        after,
        times.expired_before(),
        limit,
        interval(times.kept),
    )
    .fetch_all(db)
    .await
}

/// One key that still counts.
///
/// # Errors
/// When the database fails.
pub async fn one(
    db: impl PgExecutor<'_>,
    name: &Name,
    times: Retention,
) -> sqlx::Result<Option<Entry>> {
    sqlx::query_as!(
        Entry,
        r#"select
            id, endpoint, key, first_seen_at, first_seen_at + $5::interval as "expires_at!",
            replays, status::integer as "status!", message_id
        from idempotency_keys
        where store_id = $1
            and endpoint = $2
            and key = $3
            and first_seen_at > $4
            and status is not null"#,
        name.store_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        times.expired_before(),
        interval(times.kept),
    )
    .fetch_optional(db)
    .await
}

fn interval(span: TimeDelta) -> sqlx::postgres::types::PgInterval {
    sqlx::postgres::types::PgInterval {
        months: 0,
        days: 0,
        microseconds: span.num_microseconds().unwrap_or(i64::MAX),
    }
}

/// Forgets a key, so that the next request with it sends again; `false` when it is not there. Waits
/// for a request that has it no longer than the `lock_timeout` of the transaction, which is to be
/// rolled back when there is no such key.
///
/// # Errors
/// When the database fails; SQLSTATE 55P03 means that the key is in use.
pub async fn forget(
    connection: &mut Connection,
    name: &Name,
    new_id: Uuid,
    times: Retention,
) -> sqlx::Result<bool> {
    // An insert meets also a key whose first request is still under way, which no one else can see.
    let inserted = sqlx::query!(
        "insert into idempotency_keys (store_id, id, endpoint, key, body_sha256, first_seen_at)
        values ($1, $2, $3, $4, '', $5)
        on conflict (store_id, endpoint, key) do nothing",
        name.store_id,
        new_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        times.now,
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if inserted == 1 {
        return Ok(false);
    }
    let deleted = sqlx::query!(
        "delete from idempotency_keys
        where store_id = $1 and endpoint = $2 and key = $3 and first_seen_at > $4",
        name.store_id,
        name.endpoint.as_str(),
        name.key.as_str(),
        times.expired_before(),
    )
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() == 1)
}

/// Deletes keys of a store whose time is over, slice by slice; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn purge(state: &State, store_id: i64) -> sqlx::Result<u64> {
    let before = Retention::of(state).expired_before();
    let mut deleted = 0;
    loop {
        let slice = sqlx::query!(
            "delete from idempotency_keys
            where store_id = $1
                and first_seen_at <= $2
                and id = any(array(
                    select id
                    from idempotency_keys
                    where store_id = $1
                    order by id
                    limit $3
                ))",
            store_id,
            before,
            SLICE,
        )
        .execute(&state.pool)
        .await?
        .rows_affected();
        deleted += slice;
        if slice < SLICE.unsigned_abs() {
            return Ok(deleted);
        }
    }
}

/// The keys that requests of this process are at work with, each with its queue.
#[derive(Clone, Default)]
pub struct InUse(Arc<Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>>);

/// The right to work with a key, until it is dropped.
pub struct Turn {
    in_use: InUse,
    name: Name,
    guard: Option<OwnedMutexGuard<()>>,
}

impl InUse {
    /// Waits for all who came before with this key.
    ///
    /// # Errors
    /// `IdempotencyKeyInUse` when that takes too long.
    pub async fn wait(&self, name: &Name, deadline: Instant) -> Result<Turn, Error> {
        let queue = Arc::clone(self.queues().entry(name.clone()).or_default());
        let mut turn = Turn {
            in_use: self.clone(),
            name: name.clone(),
            guard: None,
        };
        let waited = tokio::time::timeout_at(deadline, queue.lock_owned()).await;
        turn.guard = Some(waited.map_err(|_| Error::IdempotencyKeyInUse)?);
        Ok(turn)
    }

    /// Whether a request of this process is at work with a key.
    #[must_use]
    pub fn is_taken(&self, name: &Name) -> bool {
        self.queues().contains_key(name)
    }

    /// How many keys are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<Name, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Under the lock of the map nobody can join the queue while it is taken away.
        let mut queues = self.in_use.queues();
        self.guard = None;
        if let Some(queue) = queues.get(&self.name)
            && Arc::strong_count(queue) == 1
        {
            queues.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(values: &[&[u8]]) -> Result<Option<Key>, Error> {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value).expect("a header value");
            headers.append(IDEMPOTENCY_KEY, value);
        }
        Key::of(&headers)
    }

    #[test]
    fn a_key_is_visible_ascii_of_at_most_255_characters() {
        assert_eq!(of(&[]).expect("none is fine"), None);
        let longest = "k".repeat(255);
        for (sent, kept) in [
            ("a", "a"),
            ("\"a b\"".replace(' ', "-").as_str(), "a-b"),
            ("\"\"\"", "\""),
            ("\"", "\""),
            ("a\"", "a\""),
            ("!~", "!~"),
            (longest.as_str(), longest.as_str()),
            (format!("\"{longest}\"").as_str(), longest.as_str()),
        ] {
            let key = of(&[sent.as_bytes()]).expect("a key").expect("one");
            assert_eq!(key.as_str(), kept);
        }
        let too_long = "k".repeat(256);
        for refused in [
            &[""][..],
            &["\"\""],
            &["a b"],
            &["é"],
            &["a", "a"],
            &["a\tb"],
            &[too_long.as_str()],
        ] {
            let refused: Vec<&[u8]> = refused.iter().map(|text| text.as_bytes()).collect();
            assert!(matches!(of(&refused), Err(Error::IdempotencyKeyInvalid)));
        }
    }

    #[tokio::test]
    async fn one_works_with_a_key_and_the_others_wait() {
        let in_use = InUse::default();
        let name = Name {
            store_id: 1,
            endpoint: Endpoint::Send,
            key: Key::parse("k").expect("a key"),
        };
        let soon = || Instant::now() + Duration::from_millis(30);
        let first = in_use.wait(&name, soon()).await.expect("it is free");
        let refused = in_use.wait(&name, soon()).await;
        assert!(matches!(refused, Err(Error::IdempotencyKeyInUse)));
        assert!(
            in_use.is_taken(&name),
            "the one who gave up took nothing away"
        );
        let waiting = tokio::spawn({
            let (in_use, name) = (in_use.clone(), name.clone());
            async move {
                in_use
                    .wait(&name, Instant::now() + Duration::from_secs(5))
                    .await
            }
        });
        tokio::task::yield_now().await;
        drop(first);
        drop(waiting.await.expect("no panic").expect("its turn"));
        assert!(in_use.is_empty(), "nothing is left behind");
    }
}
