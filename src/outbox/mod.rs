//! Work that a transaction leaves to be done after its commit, for example a message to be handed
//! to its provider.
//!
//! ```text
//!  append ──► waiting ──lease──► leased ──┬─ done ──────────────► (row gone)
//!               ▲  ▲               │      ├─ not done ──► waiting, due later
//!               │  └─ lease runs ──┤      ├─ given up ──► dead ──retry──► waiting
//!               │     out          │      └─ may have been done ──► unknown
//!               │                begin
//!               │                  │  from here on it can't be repeated
//!               └──────────────────┴── lease runs out: leased again, with `begun` set
//! ```
//!
//! A row is written in the transaction that causes it. A worker leases rows by time, works outside
//! any transaction, then settles. Whoever does something that can't be repeated marks its beginning
//! first ([`begin`]): a lease that runs out before that mark is simply given to somebody else, one
//! that runs out after it leaves work of which nobody knows what came of it, and whoever gets it next
//! is told so.
//!
//! Every statement names the store, but for the sweep's look for stores that have due rows, a bucket
//! at a time. Rows are leased for each of them in turn, so a store's backlog is nobody else's. The
//! guard of a lease stands twice: two sweepers may find the same row, and the second one sees in the
//! update that it is taken.

mod worker;

pub use worker::{Handler, Hints, Work, Worker};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::database::{Connection, Database};
use crate::state::State;

/// Into how many parts the stores are divided for sweeping.
pub const BUCKETS: i16 = 64;
/// How long a lease lasts; all waits and deadlines of one piece of work stay below it.
pub const LEASE: TimeDelta = TimeDelta::seconds(90);
/// How long dead and unknown rows are kept.
const KEPT: TimeDelta = TimeDelta::days(30);
/// Rows deleted at a time.
const SLICE: i64 = 1_000;

/// The reason of rows that wait for nothing but their turn.
pub const PACED: &str = "paced";

/// The part that a store belongs to: stable for ever, since it is stored.
#[must_use]
pub fn bucket(store_id: i64) -> i16 {
    // The finaliser of splitmix64: neighbouring ids land far apart.
    let mut hash = store_id.unsigned_abs();
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    i16::try_from(hash % u64::from(BUCKETS.unsigned_abs())).unwrap_or(0)
}

/// A row that somebody works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// Whose it is.
    pub store_id: i64,
    /// Of what is to be done.
    pub id: Uuid,
    /// Who does it.
    pub kind: String,
    /// How often it was begun or tried before.
    pub attempt: i32,
    /// Somebody began what can't be repeated and never said what came of it.
    pub begun: bool,
    /// It has waited for its turn before ([`PACED`]).
    pub parked: bool,
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// When it was left to be done.
    pub created_at: DateTime<Utc>,
    /// Proves that it is still ours.
    pub lease_id: Uuid,
}

/// Leaves work of one kind to be done, in the transaction that causes it.
///
/// # Errors
/// When the database fails.
pub async fn append(
    connection: &mut Connection,
    store_id: i64,
    kind: &str,
    ids: &[Uuid],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    append_later(connection, store_id, kind, ids, &vec![now; ids.len()], now).await
}

/// The same for work that is due later, each at its time.
///
/// # Errors
/// When the database fails.
pub async fn append_later(
    connection: &mut Connection,
    store_id: i64,
    kind: &str,
    ids: &[Uuid],
    due: &[DateTime<Utc>],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into outbox (store_id, id, bucket, kind, due_at, created_at)
        select $1, id, $2, $3, due_at, $4
        from unnest($5::uuid[], $6::timestamptz[]) as new (id, due_at)",
        store_id,
        bucket(store_id),
        kind,
        now,
        ids,
        due,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes one piece of work due now at the latest, leaving it to be done if it is not there. Whoever
/// has it leased settles it only after this transaction, and sees then what it has written.
///
/// # Errors
/// When the database fails.
pub async fn wake(
    connection: &mut Connection,
    store_id: i64,
    kind: &str,
    id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into outbox (store_id, id, bucket, kind, due_at, created_at)
        values ($1, $2, $3, $4, $5, $5)
        on conflict (id, store_id) do update
        set due_at = least(outbox.due_at, excluded.due_at)",
        store_id,
        id,
        bucket(store_id),
        kind,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks a row that is leased under this lease; says whether it still is.
///
/// # Errors
/// When the database fails.
pub async fn hold(
    connection: &mut Connection,
    store_id: i64,
    id: Uuid,
    lease_id: Uuid,
) -> sqlx::Result<bool> {
    let held = sqlx::query_scalar!(
        "select id
        from outbox
        where store_id = $1 and id = $2 and lease_id = $3 and state = 'waiting'
        for update",
        store_id,
        id,
        lease_id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(held.is_some())
}

/// Makes a lease last until another time; says whether it is still held.
///
/// # Errors
/// When the database fails.
pub async fn extend(
    db: impl PgExecutor<'_>,
    store_id: i64,
    id: Uuid,
    lease_id: Uuid,
    until: DateTime<Utc>,
) -> sqlx::Result<bool> {
    let extended = sqlx::query!(
        "update outbox
        set lease_until = $4
        where store_id = $1 and id = $2 and lease_id = $3 and state = 'waiting'",
        store_id,
        id,
        lease_id,
        until,
    )
    .execute(db)
    .await?;
    Ok(extended.rows_affected() == 1)
}

/// Leases rows that are due, for example just committed ones, if nobody was faster.
///
/// # Errors
/// When the database fails.
pub async fn lease_fresh(
    db: impl PgExecutor<'_>,
    store_id: i64,
    ids: &[Uuid],
    lease_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Leased>> {
    sqlx::query_as!(
        Leased,
        r#"update outbox
        set lease_id = $3, lease_until = $4
        where store_id = $1
            and id = any($2)
            and state = 'waiting'
            and due_at <= $5
            and (lease_until is null or lease_until < $5)
        returning
            store_id, id, kind, attempt, begun_at is not null as "begun!",
            error_code is not distinct from 'paced' as "parked!", due_at, created_at,
            lease_id as "lease_id!""#,
        store_id,
        ids,
        lease_id,
        now + LEASE,
        now,
    )
    .fetch_all(db)
    .await
}

/// Work of a store that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Whose it is.
    pub store_id: i64,
    /// Who does it.
    pub kind: String,
}

/// The stores that have due work of these kinds which nobody has leased.
///
/// # Errors
/// When the database fails.
pub async fn due(
    db: impl PgExecutor<'_>,
    kinds: &[&str],
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Due>> {
    let all: Vec<i16> = (0..BUCKETS).collect();
    // From each store to the next one of its bucket, by the index: a store's backlog is stepped over.
    // The limits keep the planner from joining the whole queue with the buckets.
    sqlx::query_as!(
        Due,
        r#"with recursive stores (bucket, kind, store_id) as (
            select bucket.bucket, kind.kind, first.store_id
            from unnest($1::smallint[]) as bucket (bucket)
            cross join unnest($2::text[]) as kind (kind)
            cross join lateral (
                select o.store_id
                from outbox o
                where o.bucket = bucket.bucket and o.kind = kind.kind and o.state = 'waiting'
                order by o.store_id
                limit 1
            ) first
            union all
            select stores.bucket, stores.kind, next.store_id
            from stores
            cross join lateral (
                select o.store_id
                from outbox o
                where o.bucket = stores.bucket
                    and o.kind = stores.kind
                    and o.state = 'waiting'
                    and o.store_id > stores.store_id
                order by o.store_id
                limit 1
            ) next
        )
        select stores.store_id as "store_id!", stores.kind as "kind!"
        from stores
        cross join lateral (
            select
            from outbox o
            where o.bucket = stores.bucket
                and o.kind = stores.kind
                and o.store_id = stores.store_id
                and o.state = 'waiting'
                and o.due_at <= $3
                and (o.lease_until is null or o.lease_until < $3)
            limit 1
        ) due"#,
        &all,
        kinds as &[&str],
        now,
    )
    .fetch_all(db)
    .await
}

/// Leases due rows of a store and kind, those that wait longest first, if nobody is faster.
///
/// # Errors
/// When the database fails.
pub async fn lease_due(
    pool: &Database,
    store_id: i64,
    kind: &str,
    limit: i64,
    lease_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Leased>> {
    // Looked for and leased in two statements: as one, with an empty queue in the planner's mind, the
    // search would be repeated for each row of the queue.
    let mut ids = sqlx::query_scalar!(
        "select id
        from outbox
        where bucket = $1
            and kind = $2
            and store_id = $3
            and state = 'waiting'
            and due_at <= $4
            and (lease_until is null or lease_until < $4)
        order by due_at
        limit $5",
        bucket(store_id),
        kind,
        store_id,
        now,
        limit,
    )
    .fetch_all(pool)
    .await?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // Locked in everybody's order.
    ids.sort_unstable();
    lease_fresh(pool, store_id, &ids, lease_id, now).await
}

/// Marks that what can't be repeated begins now; gives the rows that are still ours. Committed
/// before the first byte leaves.
///
/// # Errors
/// When the database fails: then nothing may be begun.
pub async fn begin(
    db: impl PgExecutor<'_>,
    store_id: i64,
    ids: &[Uuid],
    lease_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "update outbox
        set begun_at = $4, lease_until = $5, attempt = attempt + 1
        where store_id = $1
            and id = any($2)
            and lease_id = $3
            and state = 'waiting'
            and begun_at is null
        returning id",
        store_id,
        ids,
        lease_id,
        now,
        now + LEASE,
    )
    .fetch_all(db)
    .await
}

/// What is to become of a row that was worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the row goes.
    Done,
    /// Not done, for this reason; to be tried again.
    Again {
        /// When.
        due_at: DateTime<Utc>,
        /// Why it was not done.
        code: Option<String>,
    },
    /// Given up, for this reason.
    Dead {
        /// Why.
        code: String,
    },
    /// It may have been done.
    Unknown {
        /// Why nobody knows.
        code: String,
    },
}

/// Settles rows that were leased under this lease, in the caller's transaction; gives those that it
/// could settle. What is done is done whoever has the lease by now; anything else is for the one who
/// has it, since a later attempt may be under way, or an operator may have decided otherwise.
///
/// # Errors
/// When the database fails.
pub async fn settle(
    connection: &mut Connection,
    store_id: i64,
    lease_id: Uuid,
    settled: &[(Uuid, Settlement)],
) -> sqlx::Result<Vec<Uuid>> {
    let mut ids: Vec<Uuid> = settled
        .iter()
        .filter(|(_, settlement)| *settlement == Settlement::Done)
        .map(|(id, _)| *id)
        .collect();
    remove(connection, store_id, &ids).await?;
    for (id, settlement) in settled {
        let (state, due_at, code) = match settlement {
            Settlement::Done => continue,
            Settlement::Again { due_at, code } => ("waiting", Some(*due_at), code.as_deref()),
            Settlement::Dead { code } => ("dead", None, Some(code.as_str())),
            Settlement::Unknown { code } => ("unknown", None, Some(code.as_str())),
        };
        let was_ours = sqlx::query!(
            "update outbox
            set state = $4,
                due_at = coalesce($5, due_at),
                error_code = $6,
                lease_id = null,
                lease_until = null,
                begun_at = null
            where store_id = $1 and id = $2 and lease_id = $3",
            store_id,
            id,
            lease_id,
            state,
            due_at,
            code,
        )
        .execute(&mut *connection)
        .await?;
        if was_ours.rows_affected() == 1 {
            ids.push(*id);
        }
    }
    Ok(ids)
}

/// Removes rows: what they were for is done, or can't be wanted any more.
///
/// # Errors
/// When the database fails.
pub async fn remove(connection: &mut Connection, store_id: i64, ids: &[Uuid]) -> sqlx::Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "delete from outbox where store_id = $1 and id = any($2)",
        store_id,
        ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The rows among these that nobody has begun, locked: they are not begun before the transaction ends.
///
/// # Errors
/// When the database fails.
pub async fn waiting(
    db: impl PgExecutor<'_>,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select id
        from outbox
        where store_id = $1 and id = any($2) and state = 'waiting' and begun_at is null
        order by id
        for update",
        store_id,
        ids,
    )
    .fetch_all(db)
    .await
}

/// Removes rows that nobody has begun.
///
/// # Errors
/// When the database fails.
pub async fn remove_idle(
    connection: &mut Connection,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from outbox where store_id = $1 and id = any($2) and begun_at is null",
        store_id,
        ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts an attempt that needed no mark of its beginning.
///
/// # Errors
/// When the database fails.
pub async fn count_attempt(
    connection: &mut Connection,
    store_id: i64,
    id: Uuid,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update outbox set attempt = attempt + 1 where store_id = $1 and id = $2",
        store_id,
        id,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives leased rows back, to be done later; nothing was begun.
///
/// # Errors
/// When the database fails: then their lease runs out.
pub async fn put_back(
    db: impl PgExecutor<'_>,
    store_id: i64,
    lease_id: Uuid,
    rows: &[(Uuid, DateTime<Utc>)],
    code: Option<&str>,
) -> sqlx::Result<()> {
    let (ids, due): (Vec<Uuid>, Vec<DateTime<Utc>>) = rows.iter().copied().unzip();
    sqlx::query!(
        "update outbox o
        set due_at = later.due_at, lease_id = null, lease_until = null, error_code = $5
        from unnest($3::uuid[], $4::timestamptz[]) as later (id, due_at)
        where o.store_id = $1
            and o.id = later.id
            and o.lease_id = $2
            and o.begun_at is null
            and o.state = 'waiting'",
        store_id,
        lease_id,
        &ids,
        &due,
        code,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What an operator sees of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Whose it is.
    pub store_id: i64,
    /// Of what is to be done: a message's id.
    pub id: Uuid,
    /// `message`, `inbound` for an event of the provider, `run` of an automation, or `export` that has
    /// something to send.
    pub kind: String,
    /// `waiting`, `dead` or `unknown`.
    pub state: String,
    /// How often it was tried.
    pub attempt: i32,
    /// When it is tried next.
    pub due_at: DateTime<Utc>,
    /// Why it is not done yet.
    pub error_code: Option<String>,
    /// When it was left to be done.
    pub created_at: DateTime<Utc>,
}

/// Which rows an operator wants to see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Of one store alone.
    pub store_id: Option<i64>,
    /// In one state alone.
    pub state: Option<&'a str>,
    /// At most so many.
    pub limit: i64,
}

/// Rows that are not done, oldest first. Looks at all stores unless one is named.
///
/// # Errors
/// When the database fails.
pub async fn list(db: impl PgExecutor<'_>, wanted: Wanted<'_>) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        "select store_id, id, kind, state, attempt, due_at, error_code, created_at
        from outbox
        where ($1::bigint is null or store_id = $1)
            and ($2::text is null or state = $2)
        order by created_at, id
        limit $3",
        wanted.store_id,
        wanted.state,
        wanted.limit,
    )
    .fetch_all(db)
    .await
}

/// Lets dead rows of a store be tried again that were left to be done before a time, at most so many;
/// gives their ids. Those that may have been done are left alone.
///
/// # Errors
/// When the database fails.
pub async fn revive(
    connection: &mut Connection,
    store_id: i64,
    ids: Option<&[Uuid]>,
    limit: i64,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "update outbox
        set state = 'waiting', attempt = 0, due_at = $3, created_at = $3, error_code = null
        where store_id = $1
            and state = 'dead'
            and id = any(array(
                select id
                from outbox
                where store_id = $1
                    and state = 'dead'
                    and created_at <= $5
                    and ($2::uuid[] is null or id = any($2))
                limit $4
            ))
        returning id",
        store_id,
        ids,
        now,
        limit,
        before,
    )
    .fetch_all(connection)
    .await
}

/// Makes all work of one kind of a store that waits due now, for example when what held it up is
/// mended.
///
/// # Errors
/// When the database fails.
pub async fn hurry(
    db: impl PgExecutor<'_>,
    store_id: i64,
    kind: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update outbox
        set due_at = $2, error_code = null
        where store_id = $1 and kind = $3 and state = 'waiting' and due_at > $2",
        store_id,
        now,
        kind,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes dead and unknown rows of a store that nobody asked for in a month; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn purge(state: &State, store_id: i64) -> sqlx::Result<u64> {
    let before = state.clock.now() - KEPT;
    let mut deleted = 0;
    loop {
        let slice = sqlx::query!(
            "delete from outbox
            where store_id = $1
                and id = any(array(
                    select id
                    from outbox
                    where store_id = $1 and state <> 'waiting' and created_at < $2
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_for_ever_and_stores_are_spread() {
        // These numbers are stored: they must never change.
        let first: Vec<i16> = (1..=8).map(bucket).collect();
        assert_eq!(first, FIRST);
        let mut counts = [0; BUCKETS as usize];
        for store_id in 1..=6_400 {
            counts[usize::try_from(bucket(store_id)).expect("not negative")] += 1;
        }
        assert!(counts.iter().all(|count| (60..=140).contains(count)));
    }

    const FIRST: [i16; 8] = [37, 10, 48, 20, 28, 44, 20, 40];
}
