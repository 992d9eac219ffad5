//! Deliveries: one for each record that an export ever had to send.
//!
//! ```text
//!           ┌──────────── taken, or skipped ◄──────────┐
//!           ▼                                          │
//!         idle ── a change, a run ──► waiting ── call ─┤
//!                                        ▲             │
//!                              replay,   │     not taken: due later, at the eighth time
//!                              a change  │             ▼
//!                                        └─────────── dead
//! ```
//!
//! What waits is the record, not a state of it: whatever it is when its call is made is sent.
//! `wanted` grows with each change, so whoever settles a call sees whether there was one meanwhile.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use utoipa::ToSchema;
use uuid::Uuid;

use super::pages::{MOST_SCANNED, Page};
use crate::clock::Clock;
use crate::database::Connection;

/// Its call was made, but what came of it could not be noted.
pub const NOT_SETTLED: &str = "not_settled";

/// A record that is to be sent.
#[derive(Clone, Debug)]
pub struct Want {
    /// By which export.
    pub export_id: Uuid,
    /// The resource's path.
    pub resource: String,
    /// Which record.
    pub record_id: Uuid,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
    /// When the customer was erased, which the receiver is told instead.
    pub erased_at: Option<DateTime<Utc>>,
}

/// Lets records wait for their calls; each of them once in `wants`. For a run everything begins
/// anew; else what waits already keeps its schedule.
///
/// # Errors
/// When the database fails.
pub async fn want(
    connection: &mut Connection,
    store_id: i64,
    wants: &[Want],
    run_id: Option<Uuid>,
    clock: &Clock,
) -> sqlx::Result<()> {
    if wants.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = wants.iter().map(|_| clock.new_id()).collect();
    let export_ids: Vec<Uuid> = wants.iter().map(|want| want.export_id).collect();
    let resources: Vec<&str> = wants.iter().map(|want| want.resource.as_str()).collect();
    let record_ids: Vec<Uuid> = wants.iter().map(|want| want.record_id).collect();
    let names = wants.iter().map(|want| want.external_id.as_deref());
    let external_ids: Vec<Option<&str>> = names.collect();
    let erased: Vec<Option<DateTime<Utc>>> = wants.iter().map(|want| want.erased_at).collect();
    sqlx::query!(
        "insert into export_deliveries as d (
            store_id, id, export_id, resource, record_id, external_id, state, wanted, due_at,
            erased_at, run_id, created_at, updated_at
        )
        select
            $1, id, export_id, resource, record_id, external_id, 'waiting', 1, $2, erased_at, $3,
            $2, $2
        from unnest(
            $4::uuid[], $5::uuid[], $6::text[], $7::uuid[], $8::text[], $9::timestamptz[]
        ) as new (id, export_id, resource, record_id, external_id, erased_at)
        order by record_id, export_id
        on conflict (record_id, export_id, store_id) do update
        set state = 'waiting',
            wanted = d.wanted + 1,
            attempt = case
                when d.state = 'waiting' and excluded.run_id is null then d.attempt else 0
            end,
            due_at = case
                when d.state = 'waiting' and excluded.run_id is null then d.due_at
                else excluded.due_at
            end,
            error_code = case
                when d.state = 'waiting' and excluded.run_id is null then d.error_code
            end,
            response_status = case
                when d.state = 'waiting' and excluded.run_id is null then d.response_status
            end,
            external_id = case
                when excluded.erased_at is null
                then coalesce(excluded.external_id, d.external_id)
            end,
            erased_at = coalesce(excluded.erased_at, d.erased_at),
            run_id = coalesce(excluded.run_id, d.run_id),
            updated_at = excluded.updated_at",
        store_id,
        clock.now(),
        run_id,
        &ids,
        &export_ids,
        &resources as &[&str],
        &record_ids,
        &external_ids as &[Option<&str>],
        &erased as &[Option<DateTime<Utc>>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A delivery whose call is due.
#[derive(Clone, Debug)]
pub struct Due {
    /// The resource's path.
    pub resource: String,
    /// Which record.
    pub record_id: Uuid,
    /// How often it was wanted.
    pub wanted: i64,
    /// Calls that the receiver took.
    pub successes: i64,
    /// Calls in a row that it did not.
    pub attempt: i32,
    /// When the customer was erased.
    pub erased_at: Option<DateTime<Utc>>,
    /// A call was begun of which nobody noted that it was taken.
    pub unsure: bool,
    /// The run that waits for it.
    pub run_id: Option<Uuid>,
}

/// Deliveries of an export that are due, but for those in hand, longest due first.
///
/// # Errors
/// When the database fails.
pub async fn due(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    in_hand: &[Uuid],
    limit: i64,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as!(
        Due,
        "select resource, record_id, wanted, successes, attempt, erased_at, unsure, run_id
        from export_deliveries
        where export_id = $2
            and store_id = $1
            and state = 'waiting'
            and due_at <= $3
            and record_id <> all($4)
        order by due_at
        limit $5",
        store_id,
        export_id,
        now,
        in_hand,
        limit,
    )
    .fetch_all(db)
    .await
}

/// When the next call of an export is due.
///
/// # Errors
/// When the database fails.
pub async fn next_due(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        "select due_at
        from export_deliveries
        where export_id = $2 and store_id = $1 and state = 'waiting'
        order by due_at
        limit 1",
        store_id,
        export_id,
    )
    .fetch_optional(db)
    .await
}

/// A delivery as it is while it is locked.
#[derive(Clone, Debug)]
pub struct Locked {
    /// Which record.
    pub record_id: Uuid,
    /// How often it was wanted.
    pub wanted: i64,
    /// Calls that the receiver took.
    pub successes: i64,
    /// Calls in a row that it did not.
    pub attempt: i32,
    /// When the customer was erased.
    pub erased_at: Option<DateTime<Utc>>,
    /// A call was begun of which nobody noted that it was taken.
    pub unsure: bool,
    /// The run that waits for it.
    pub run_id: Option<Uuid>,
}

/// Locks deliveries, in everybody's order.
///
/// # Errors
/// When the database fails.
pub async fn lock(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    record_ids: &[Uuid],
) -> sqlx::Result<Vec<Locked>> {
    // Looked up one by one: as one condition, a plan that was made while there were few would walk
    // the export.
    let mut record_ids = record_ids.to_vec();
    record_ids.sort_unstable();
    sqlx::query_as!(
        Locked,
        "select locked.*
        from unnest($3::uuid[]) as called (record_id)
        cross join lateral (
            select record_id, wanted, successes, attempt, erased_at, unsure, run_id
            from export_deliveries d
            where d.record_id = called.record_id and d.export_id = $2 and d.store_id = $1
            limit 1
            for update
        ) locked",
        store_id,
        export_id,
        &record_ids,
    )
    .fetch_all(connection)
    .await
}

/// What a delivery has become.
#[derive(Clone, Debug)]
pub struct Become {
    /// Which record.
    pub record_id: Uuid,
    /// `idle`, `waiting` or `dead`.
    pub state: &'static str,
    /// Calls that the receiver took.
    pub successes: i64,
    /// Calls in a row that it did not.
    pub attempt: i32,
    /// When it is called next.
    pub due_at: DateTime<Utc>,
    /// Why the last call failed.
    pub error_code: Option<String>,
    /// What the receiver said to it.
    pub response_status: Option<i16>,
    /// A call was begun of which nobody noted that it was taken.
    pub unsure: bool,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
    /// The run that waits for it.
    pub run_id: Option<Uuid>,
}

/// Writes down what locked deliveries have become.
///
/// # Errors
/// When the database fails.
pub async fn write(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    rows: &[Become],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let record_ids: Vec<Uuid> = rows.iter().map(|row| row.record_id).collect();
    let states: Vec<&str> = rows.iter().map(|row| row.state).collect();
    let successes: Vec<i64> = rows.iter().map(|row| row.successes).collect();
    let attempts: Vec<i32> = rows.iter().map(|row| row.attempt).collect();
    let due: Vec<DateTime<Utc>> = rows.iter().map(|row| row.due_at).collect();
    let codes: Vec<Option<&str>> = rows.iter().map(|row| row.error_code.as_deref()).collect();
    let statuses: Vec<Option<i16>> = rows.iter().map(|row| row.response_status).collect();
    let unsure: Vec<bool> = rows.iter().map(|row| row.unsure).collect();
    let names: Vec<Option<&str>> = rows.iter().map(|row| row.external_id.as_deref()).collect();
    let run_ids: Vec<Option<Uuid>> = rows.iter().map(|row| row.run_id).collect();
    // They are there, so nothing is inserted. An update that is joined with what they become would,
    // by a plan that was made while there were few, walk the export.
    sqlx::query!(
        "insert into export_deliveries as d (
            store_id, id, export_id, resource, record_id, external_id, state, wanted, successes,
            attempt, due_at, error_code, response_status, run_id, unsure, created_at, updated_at
        )
        select
            $1, record_id, $2, '', record_id, external_id, state, 0, successes, attempt, due_at,
            error_code, response_status, run_id, unsure, $3, $3
        from unnest(
            $4::uuid[], $5::text[], $6::bigint[], $7::integer[], $8::timestamptz[], $9::text[],
            $10::smallint[], $11::text[], $12::uuid[], $13::boolean[]
        ) as new (
            record_id, state, successes, attempt, due_at, error_code, response_status, external_id,
            run_id, unsure
        )
        on conflict (record_id, export_id, store_id) do update
        set state = excluded.state,
            successes = excluded.successes,
            attempt = excluded.attempt,
            due_at = excluded.due_at,
            error_code = excluded.error_code,
            response_status = excluded.response_status,
            external_id = case
                when d.erased_at is null then coalesce(excluded.external_id, d.external_id)
            end,
            run_id = excluded.run_id,
            unsure = excluded.unsure,
            updated_at = excluded.updated_at",
        store_id,
        export_id,
        now,
        &record_ids,
        &states as &[&str],
        &successes,
        &attempts,
        &due,
        &codes as &[Option<&str>],
        &statuses as &[Option<i16>],
        &names as &[Option<&str>],
        &run_ids as &[Option<Uuid>],
        &unsure,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that calls of these records are about to begin, in the caller's transaction: until one of
/// them is noted as taken, nobody knows which state the receiver has.
///
/// # Errors
/// When the database fails: then none may begin.
pub async fn doubt(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    record_ids: &[Uuid],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let locked = lock(&mut *connection, store_id, export_id, record_ids).await?;
    let record_ids: Vec<Uuid> = locked.iter().map(|row| row.record_id).collect();
    // As in `write`.
    sqlx::query!(
        "insert into export_deliveries as d (
            store_id, id, export_id, resource, record_id, state, wanted, due_at, unsure, created_at,
            updated_at
        )
        select $1, record_id, $2, '', record_id, 'waiting', 0, $3, true, $3, $3
        from unnest($4::uuid[]) as called (record_id)
        on conflict (record_id, export_id, store_id) do update
        set unsure = true",
        store_id,
        export_id,
        now,
        &record_ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives up a delivery whose call can't be noted, unless its record has changed since.
///
/// # Errors
/// When the database fails.
pub async fn give_up(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    due: &Due,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update export_deliveries
        set state = case when wanted = $4 then 'dead' else 'waiting' end,
            error_code = $5,
            response_status = null,
            due_at = $6,
            updated_at = $6
        where store_id = $1 and export_id = $2 and record_id = $3",
        store_id,
        export_id,
        due.record_id,
        due.wanted,
        NOT_SETTLED,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What is still to be sent, and why it is not yet.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ExportDelivery)]
pub struct Delivery {
    /// Ours.
    pub id: Uuid,
    /// The resource's path.
    pub resource: String,
    /// `id` of the record.
    pub record_id: Uuid,
    /// `external_id` of the record; null for a customer without one or since erased.
    pub external_id: Option<String>,
    /// `waiting`, or `dead`: given up, until it changes or is replayed.
    #[schema(example = "waiting")]
    pub state: String,
    /// Calls in a row that the receiver did not take.
    pub attempt: i32,
    /// When it is called next.
    pub due_at: DateTime<Utc>,
    /// Why the last call failed: `http_500` and so on, `not_connected`, `timed_out`,
    /// `connection_lost` or `address_refused`; `not_settled`: what came of it could not be noted.
    pub error_code: Option<String>,
    /// The status that the receiver answered.
    pub response_status: Option<i16>,
    /// The run that waits for it.
    pub run_id: Option<Uuid>,
    /// When that was written.
    pub updated_at: DateTime<Utc>,
}

/// Deliveries that wait or are dead, in order of their ids.
///
/// # Errors
/// When the database fails.
pub async fn page(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    state: Option<&str>,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Page<Delivery>> {
    let rows = sqlx::query_as!(
        Delivery,
        "select
            id, resource, record_id, external_id, state, attempt, due_at, error_code,
            response_status, run_id, updated_at
        from (
            select *
            from export_deliveries
            where export_id = $2 and store_id = $1 and state <> 'idle' and id > $3
            order by id
            limit $6
        ) looked_at
        where $4::text is null or state = $4
        order by id
        limit $5",
        store_id,
        export_id,
        after,
        state,
        limit + 1,
        MOST_SCANNED,
    )
    .fetch_all(&mut *connection)
    .await?;
    match Page::full(rows, limit, |row| row.id) {
        Ok(page) => Ok(page),
        Err(rows) => {
            let last = sqlx::query_scalar!(
                "select id
                from export_deliveries
                where export_id = $2 and store_id = $1 and state <> 'idle' and id > $3
                order by id
                offset $4
                limit 1",
                store_id,
                export_id,
                after,
                MOST_SCANNED - 1,
            );
            let next_after = last.fetch_optional(connection).await?;
            Ok(Page { rows, next_after })
        }
    }
}

/// Lets dead deliveries wait again, at most so many, and only those that died before a time if
/// there is one; gives their ids.
///
/// # Errors
/// When the database fails.
pub async fn revive(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    ids: Option<&[Uuid]>,
    limit: i64,
    before: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "update export_deliveries
        set state = 'waiting', attempt = 0, due_at = $4, updated_at = $4
        where export_id = $2
            and store_id = $1
            and state = 'dead'
            and id = any(array(
                select id
                from export_deliveries
                where export_id = $2
                    and store_id = $1
                    and state <> 'idle'
                    and state = 'dead'
                    and ($6::timestamptz is null or updated_at <= $6)
                    and ($3::uuid[] is null or id = any($3))
                order by record_id
                limit $5
                for update
            ))
        returning id",
        store_id,
        export_id,
        ids,
        now,
        limit,
        before,
    )
    .fetch_all(connection)
    .await
}
