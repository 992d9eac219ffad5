//! What changed: written with each change, numbered at reading.
//!
//! A number that is given before the commit can be skipped by a reader who is faster than the
//! commit, and a counter in each write would make all writers of a store wait for each other. So an
//! event is written without a position; whoever reads the feed locks its store's row in
//! `event_feeds`, numbers the committed events that have none, and pages by position after that.
//! Writers pay nothing, and nothing that commits late is skipped.
//!
//! Per record the order holds whatever the clocks of several processes say: an event carries its
//! record's `updated_at`, which grows with every version, and the commit of a version comes before
//! the next version can be written.

use std::future::Future;
use std::pin::Pin;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Resource;
use super::consumers;
use super::failure::{self, Failure};
use super::record::Record;
use super::transaction::Transaction;
use super::write::Outcome;
use crate::database::Connection;
use crate::error::Error;
use crate::state::State;

/// Events numbered, or deleted, at a time.
const SLICE: i64 = 1_000;
/// Positions looked at for one page when only some of them are wanted.
const MOST_SCANNED: i64 = 10_000;

/// An event on its way into the table.
#[derive(Clone, Debug)]
pub struct Event {
    /// Whose it is.
    pub store_id: i64,
    /// Proposed before the first attempt: finding it proves the commit.
    pub id: Uuid,
    /// `order.created` and so on.
    pub kind: String,
    /// The resource's path.
    pub resource: &'static str,
    /// What changed.
    pub record_id: Uuid,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
    /// The version that the change led to.
    pub version: i64,
    /// The record's `updated_at`.
    pub created_at: DateTime<Utc>,
}

impl Event {
    /// The event of a change.
    #[must_use]
    pub fn of<R: Resource>(id: Uuid, outcome: Outcome, record: &Record<R::Content>) -> Self {
        let verb = if outcome == Outcome::Created {
            "created"
        } else {
            "updated"
        };
        Self {
            store_id: record.store_id,
            id,
            kind: format!("{}.{verb}", R::SINGULAR),
            resource: R::PATH,
            record_id: record.id,
            external_id: R::event_external_id(&record.content).map(str::to_owned),
            version: record.version,
            created_at: record.updated_at,
        }
    }
}

/// Events, column by column.
pub struct Columns<'a> {
    /// Whose they are.
    pub store_ids: Vec<i64>,
    /// Their own ids.
    pub ids: Vec<Uuid>,
    /// `order.created` and so on.
    pub kinds: Vec<&'a str>,
    /// The resources' paths.
    pub resources: Vec<&'a str>,
    /// What changed.
    pub record_ids: Vec<Uuid>,
    /// Its external ids.
    pub external_ids: Vec<Option<&'a str>>,
    /// Its versions.
    pub versions: Vec<i64>,
    /// When it changed.
    pub times: Vec<DateTime<Utc>>,
}

impl<'a> Columns<'a> {
    /// The columns of events.
    #[must_use]
    pub fn of(events: &[&'a Event]) -> Self {
        let events = || events.iter();
        Self {
            store_ids: events().map(|event| event.store_id).collect(),
            ids: events().map(|event| event.id).collect(),
            kinds: events().map(|event| event.kind.as_str()).collect(),
            resources: events().map(|event| event.resource).collect(),
            record_ids: events().map(|event| event.record_id).collect(),
            external_ids: events().map(|event| event.external_id.as_deref()).collect(),
            versions: events().map(|event| event.version).collect(),
            times: events().map(|event| event.created_at).collect(),
        }
    }
}

/// The insert of events, `$1` to `$8`, between other parts of a statement.
macro_rules! insert_events {
    ($events:expr, [$before:literal $(, $after:literal)*] $(, $value:expr)*) => {
        sqlx::query!(
            $before
                + "insert into events
                    (store_id, id, type, resource, record_id, external_id, version, created_at)
                select
                    unnest($1::bigint[]), unnest($2::uuid[]), unnest($3::text[]),
                    unnest($4::text[]), unnest($5::uuid[]), unnest($6::text[]),
                    unnest($7::bigint[]), unnest($8::timestamptz[])"
                $(+ $after)*,
            &$events.store_ids,
            &$events.ids,
            &$events.kinds as &[&str],
            &$events.resources as &[&str],
            &$events.record_ids,
            &$events.external_ids as &[Option<&str>],
            &$events.versions,
            &$events.times
            $(, $value)*
        )
    };
}
pub(crate) use insert_events;

/// A statement that writes events, `$1` to `$8`, and what its parts say (common table expressions),
/// provided that a condition holds in the end: all of it or nothing, even without a transaction
/// around it. Where the condition does not hold, the sentence is no date: see `Resource::change`.
macro_rules! write_with_events {
    (
        $connection:expr, $events:expr, [$($part:literal),+],
        if [$($condition:literal),+] $(, $value:expr)+ $(,)?
    ) => {{
        let events = $crate::engine::events::Columns::of($events);
        $crate::engine::events::insert_events!(
            events,
            [
                "with event as (", ")", $($part,)+
                " select (case when ", $($condition,)+ " then '2000-01-01'
                    else 'another writer was faster: the batch is written again'
                end)::date is not null as written"
            ]
            $(, $value)+
        )
        .fetch_one($connection)
    }};
}
pub(crate) use write_with_events;

/// Writes events into the transaction that caused them.
///
/// # Errors
/// When the database fails.
pub async fn append(connection: &mut Connection, events: &[&Event]) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let events = Columns::of(events);
    insert_events!(events, [""]).execute(connection).await?;
    Ok(())
}

/// Whether any of these events, named by store and id, is committed.
///
/// # Errors
/// When the database fails.
pub async fn any_exists(connection: &mut Connection, events: &[(i64, Uuid)]) -> sqlx::Result<bool> {
    let (store_ids, ids): (Vec<i64>, Vec<Uuid>) = events.iter().copied().unzip();
    let exists = sqlx::query_scalar!(
        r#"select exists (
            select
            from unnest($1::bigint[], $2::uuid[]) as proposed (store_id, id)
            join events e on e.store_id = proposed.store_id and e.id = proposed.id
        ) as "exists!""#,
        &store_ids,
        &ids,
    )
    .fetch_one(connection)
    .await?;
    Ok(exists)
}

/// An event as the feed answers it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct FeedEvent {
    /// Its place in the store's feed: grows, with no place given twice.
    pub position: i64,
    /// UUIDv7; the same event always has the same id.
    pub id: Uuid,
    /// `<resource in singular>.created|updated|erased`.
    #[schema(example = "order.created")]
    pub r#type: String,
    /// The resource's path: `orders`, `customers` …
    #[schema(example = "orders")]
    pub resource: String,
    /// `id` of the record.
    pub record_id: Uuid,
    /// `external_id` of the record; null for a customer without one or since erased.
    pub external_id: Option<String>,
    /// The version of the record that the change led to.
    pub version: i64,
    /// When the record changed.
    pub created_at: DateTime<Utc>,
}

/// A page of the feed.
#[derive(Debug, Serialize, ToSchema)]
pub struct Feed {
    /// Events in order of their positions.
    pub data: Vec<FeedEvent>,
    /// What to send as `after` next time; never null, can be polled for ever.
    pub next_after: i64,
    /// Whether there is more right now.
    pub has_more: bool,
}

/// Which part of a store's feed is wanted.
pub struct Wanted {
    /// Whose feed.
    pub store_id: i64,
    /// The position after which to read; none: from the oldest event that is kept.
    pub after: Option<i64>,
    /// At most so many events.
    pub limit: i64,
    /// Only events of this resource.
    pub resource: Option<String>,
}

/// Looks up present external ids of records whose events don't keep them.
pub type NameLookup =
    for<'c> fn(
        &'c mut Connection,
        i64,
        &'c [Uuid],
    ) -> Pin<Box<dyn Future<Output = sqlx::Result<Vec<(Uuid, String)>>> + Send + 'c>>;

/// A page of a store's feed.
///
/// # Errors
/// `CursorExpired` when events after that position are gone, `CursorInvalid` when the feed never
/// got there, or that the database fails.
pub async fn read(
    state: &State,
    wanted: &Wanted,
    lookups: &[(&'static str, NameLookup)],
) -> Result<Feed, Error> {
    let all_numbered = number(state, wanted.store_id)
        .await
        .map_err(Failure::into_error)?;
    let mut connection = state.pool.acquire().await.map_err(failure::of_read)?;
    let feed = position(&mut connection, wanted.store_id).await?;
    let after = wanted.after.unwrap_or(feed.purged_through);
    if after > feed.last_position {
        return Err(Error::CursorInvalid);
    }
    // What is numbered from now on belongs to the next page, or a filter would step over it.
    let through = feed.last_position.min(after.saturating_add(MOST_SCANNED));
    let mut data = page(&mut connection, wanted, after, through)
        .await
        .map_err(failure::of_read)?;
    // Asked after the page: a purge in between must not look like an empty stretch.
    let oldest_after = position(&mut connection, wanted.store_id)
        .await?
        .purged_through;
    if after < oldest_after {
        return Err(Error::CursorExpired { oldest_after });
    }
    for (resource, lookup) in lookups {
        name(
            &mut connection,
            wanted.store_id,
            &mut data,
            resource,
            *lookup,
        )
        .await
        .map_err(failure::of_read)?;
    }
    let full = i64::try_from(data.len()).is_ok_and(|length| length >= wanted.limit);
    let next_after = data
        .last()
        .filter(|_| full)
        .map_or(through, |last| last.position);
    Ok(Feed {
        has_more: next_after < feed.last_position || !all_numbered,
        data,
        next_after,
    })
}

struct Position {
    last_position: i64,
    purged_through: i64,
}

async fn position(connection: &mut Connection, store_id: i64) -> Result<Position, Error> {
    let found = sqlx::query_as!(
        Position,
        "select last_position, purged_through
        from event_feeds
        where store_id = $1",
        store_id,
    )
    .fetch_optional(connection)
    .await
    .map_err(failure::of_read)?;
    Ok(found.unwrap_or(Position {
        last_position: 0,
        purged_through: 0,
    }))
}

async fn page(
    connection: &mut Connection,
    wanted: &Wanted,
    after: i64,
    through: i64,
) -> sqlx::Result<Vec<FeedEvent>> {
    sqlx::query_as!(
        FeedEvent,
        r#"select
            position as "position!", id, type, resource, record_id, external_id, version, created_at
        from events
        where store_id = $1
            and position > $2
            and position <= $3
            and ($4::text is null or resource = $4)
        order by position
        limit $5"#,
        wanted.store_id,
        after,
        through,
        wanted.resource,
        wanted.limit,
    )
    .fetch_all(connection)
    .await
}

/// Fills in the external ids of one resource's events.
async fn name(
    connection: &mut Connection,
    store_id: i64,
    events: &mut [FeedEvent],
    resource: &str,
    lookup: NameLookup,
) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = events
        .iter()
        .filter(|event| event.resource == resource)
        .map(|event| event.record_id)
        .collect();
    if ids.is_empty() {
        return Ok(());
    }
    let names = lookup(connection, store_id, &ids).await?;
    for event in events.iter_mut().filter(|event| event.resource == resource) {
        event.external_id = names
            .iter()
            .find(|(id, _)| *id == event.record_id)
            .map(|(_, name)| name.clone());
    }
    Ok(())
}

/// Numbers committed events that have no position yet, at most a slice; tells whether that was all.
///
/// # Errors
/// What the database made of it.
pub async fn number(state: &State, store_id: i64) -> Result<bool, Failure> {
    let waiting = sqlx::query_scalar!(
        r#"select exists (
            select from events where store_id = $1 and position is null
        ) as "exists!""#,
        store_id,
    )
    .fetch_one(&state.pool)
    .await?;
    if !waiting {
        return Ok(true);
    }
    let mut transaction = Transaction::begin(&state.pool).await?;
    match number_slice(transaction.connection(), store_id).await {
        Ok(numbered) => {
            // Whether it was done or not, numbering again is right: a reader is not told of it as of
            // a write.
            transaction.commit().await.map_err(Failure::from)?;
            Ok(numbered < SLICE)
        }
        Err(error) => {
            transaction.rollback().await;
            Err(error.into())
        }
    }
}

async fn number_slice(connection: &mut Connection, store_id: i64) -> sqlx::Result<i64> {
    let last = lock_feed(connection, store_id).await?.last_position;
    let numbered = sqlx::query!(
        "update events e
        set position = $2 + numbered.place
        from (
            select id, row_number() over (order by created_at, version, id) as place
            from (
                select id, created_at, version
                from events
                where store_id = $1 and position is null
                order by created_at, version, id
                limit $3
            ) waiting
        ) numbered
        where e.store_id = $1 and e.id = numbered.id",
        store_id,
        last,
        SLICE,
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let numbered = i64::try_from(numbered).unwrap_or(SLICE);
    sqlx::query!(
        "update event_feeds
        set last_position = $2
        where store_id = $1",
        store_id,
        last + numbered,
    )
    .execute(connection)
    .await?;
    Ok(numbered)
}

/// Numbers what is committed, a slice at the most, in the caller's transaction; gives the last position,
/// and whether all that is committed stands before it.
///
/// # Errors
/// When the database fails.
pub async fn number_some(connection: &mut Connection, store_id: i64) -> sqlx::Result<(i64, bool)> {
    let numbered = number_slice(&mut *connection, store_id).await?;
    let last = lock_feed(connection, store_id).await?.last_position;
    Ok((last, numbered < SLICE))
}

/// Locks a store's feed, making its row if need be.
async fn lock_feed(connection: &mut Connection, store_id: i64) -> sqlx::Result<Position> {
    sqlx::query!(
        "insert into event_feeds (store_id) values ($1) on conflict (store_id) do nothing",
        store_id,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query_as!(
        Position,
        "select last_position, purged_through from event_feeds where store_id = $1 for update",
        store_id,
    )
    .fetch_one(connection)
    .await
}

/// Deletes events of a store that are older than the retention, slice by slice; tells how many.
///
/// # Errors
/// What the database made of it.
pub async fn purge(state: &State, store_id: i64) -> Result<u64, Failure> {
    // An event without position has no reader yet, but it ages all the same.
    while !number(state, store_id).await? {}
    let kept = TimeDelta::days(i64::from(state.config.event_retention_days));
    let now = state.clock.now();
    let before = now - kept;
    let mut deleted = 0;
    // Most stores have nothing old most of the time.
    while oldest_kept(state, store_id)
        .await?
        .is_some_and(|oldest| oldest < before || oldest > now)
    {
        let mut transaction = Transaction::begin(&state.pool).await?;
        match purge_slice(transaction.connection(), store_id, before, now).await {
            Ok(0) => {
                transaction.rollback().await;
                return Ok(deleted);
            }
            Ok(slice) => {
                transaction.commit().await.map_err(Failure::of_commit)?;
                deleted += slice;
            }
            Err(error) => {
                transaction.rollback().await;
                return Err(error.into());
            }
        }
    }
    Ok(deleted)
}

/// The time of the first event that is kept.
async fn oldest_kept(state: &State, store_id: i64) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        "select e.created_at
        from event_feeds f
        join events e on e.store_id = f.store_id and e.position > f.purged_through
        where f.store_id = $1
        order by e.position
        limit 1",
        store_id,
    )
    .fetch_optional(&state.pool)
    .await
}

/// Which of the oldest events may go: those that are old enough. One that is dated in the future, by a
/// clock that was wrong, is as old as the next one that is not.
fn old_enough(
    oldest: impl Iterator<Item = (i64, DateTime<Utc>)>,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<i64> {
    let candidates = oldest.take_while(|(_, at)| *at < before || *at > now);
    let old = candidates.filter(|(_, at)| *at < before);
    old.last().map(|(position, _)| position)
}

/// Deletes the oldest positions as long as they are old enough, at most a slice.
async fn purge_slice(
    connection: &mut Connection,
    store_id: i64,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> sqlx::Result<u64> {
    let feed = lock_feed(connection, store_id).await?;
    let oldest = sqlx::query!(
        r#"select position as "position!", created_at
        from events
        where store_id = $1 and position > $2
        order by position
        limit $3"#,
        store_id,
        feed.purged_through,
        SLICE,
    )
    .fetch_all(&mut *connection)
    .await?;
    // What somebody has not looked at yet is kept, however old it is.
    let seen = consumers::least_position(&mut *connection, store_id).await?;
    let seen = oldest
        .iter()
        .map(|event| (event.position, event.created_at))
        .take_while(|(position, _)| seen.is_none_or(|seen| *position <= seen));
    let Some(through) = old_enough(seen, before, now) else {
        return Ok(0);
    };
    let deleted = sqlx::query!(
        "delete from events where store_id = $1 and position > $2 and position <= $3",
        store_id,
        feed.purged_through,
        through,
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    sqlx::query!(
        "update event_feeds set purged_through = $2 where store_id = $1",
        store_id,
        through,
    )
    .execute(connection)
    .await?;
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_the_future_holds_up_nobody_and_what_is_not_old_stays() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let at = |days: i64| now + TimeDelta::days(days);
        let before = at(-30);
        let through = |days: &[i64]| {
            let oldest = (1..).zip(days.iter().map(|days| at(*days)));
            old_enough(oldest, before, now)
        };
        assert_eq!(through(&[-40, -35, -31, -29, -40]), Some(3));
        assert_eq!(through(&[-40, 400, -35, -10]), Some(3));
        assert_eq!(through(&[400, 1, -35, 400]), Some(3));
        assert_eq!(through(&[400, 1, -10, -40]), None);
        assert_eq!(through(&[-10, -40]), None);
        assert_eq!(through(&[]), None);
    }
}
