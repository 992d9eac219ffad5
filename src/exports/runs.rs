//! Runs: an export's records, all of them, from the first to the last.
//!
//! A run walks the records by their ids and lets a delivery of each wait; its place is in its row,
//! so whoever comes next goes on there. Its counters move with the deliveries that are settled.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::KIND;
use super::definitions::Stored;
use super::deliveries::{self, Want};
use super::results;
use crate::database::Connection;
use crate::error::Error;
use crate::outbox;
use crate::resources::catalog;
use crate::state::State;

/// Records walked in one transaction.
const SLICE: i64 = 500;
/// Records that were walked and wait; beyond them the walk waits, too.
const MOST_PENDING: i64 = 1_000;
/// Records of a resource that are counted when a run begins; more take too long to be waited for.
const MOST_COUNTED: i64 = 100_000;

/// A run as it is answered.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ExportRun)]
pub struct Run {
    /// Ours.
    pub run_id: Uuid,
    /// `running`, or `completed`: every record was called for, or skipped.
    #[schema(example = "running")]
    pub status: String,
    /// One more with each retry.
    pub attempt: i32,
    /// Records to be looked at: exact when all of them were found. Before that no more than 100,000
    /// of each resource are counted, and it grows as more are found.
    pub total: i64,
    /// Those that the receiver took.
    pub sent: i64,
    /// Those that had been sent before.
    pub skipped: i64,
    /// Those whose call failed; the schedule may still turn them into sent ones.
    pub failed: i64,
    /// Those of them that are still to be looked at.
    pub pending: i64,
    /// When it was begun.
    pub created_at: DateTime<Utc>,
    /// When it was completed.
    pub finished_at: Option<DateTime<Utc>>,
}

/// Which runs of an export are looked for.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// The one with this id.
    Id(Uuid),
    /// The one that is running.
    Running,
    /// So many after one of them, oldest first.
    After(Uuid, i64),
}

/// Runs of an export.
///
/// # Errors
/// When the database fails.
pub async fn find(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    which: Which,
) -> sqlx::Result<Vec<Run>> {
    // A statement for each, with its index.
    match which {
        Which::Id(id) => {
            let found = sqlx::query_as!(
                Run,
                r#"select
                    id as run_id, status, attempt, total, sent, skipped, failed,
                    greatest(total - sent - skipped - failed, 0) as "pending!", created_at,
                    finished_at
                from export_runs
                where id = $3 and store_id = $1 and export_id = $2"#,
                store_id,
                export_id,
                id,
            );
            found.fetch_all(db).await
        }
        Which::Running => {
            let found = sqlx::query_as!(
                Run,
                r#"select
                    id as run_id, status, attempt, total, sent, skipped, failed,
                    greatest(total - sent - skipped - failed, 0) as "pending!", created_at,
                    finished_at
                from export_runs
                where export_id = $2 and store_id = $1 and status = 'running'"#,
                store_id,
                export_id,
            );
            found.fetch_all(db).await
        }
        Which::After(after, limit) => {
            let found = sqlx::query_as!(
                Run,
                r#"select
                    id as run_id, status, attempt, total, sent, skipped, failed,
                    greatest(total - sent - skipped - failed, 0) as "pending!", created_at,
                    finished_at
                from export_runs
                where export_id = $2 and store_id = $1 and id > $3
                order by id
                limit $4"#,
                store_id,
                export_id,
                after,
                limit,
            );
            found.fetch_all(db).await
        }
    }
}

/// Locks an export's row: runs of it are begun one after the other.
async fn lock_export(connection: &mut Connection, export: &Stored) -> sqlx::Result<Option<bool>> {
    sqlx::query_scalar!(
        r#"select status = 'active' as "is_active!"
        from exports
        where store_id = $1 and id = $2
        for no key update"#,
        export.store_id,
        export.id,
    )
    .fetch_optional(connection)
    .await
}

/// What asking for a run came to.
#[derive(Debug)]
pub enum Begun {
    /// It begins.
    New(Run),
    /// One is running already.
    Running(Run),
}

/// Begins a run, in the caller's transaction, unless one is running.
///
/// # Errors
/// That the export is paused or gone, or that the database fails.
pub async fn begin(
    state: &State,
    connection: &mut Connection,
    export: &Stored,
) -> sqlx::Result<Result<Begun, Error>> {
    // Before others have to wait.
    let total = count(&mut *connection, export).await?;
    match lock_export(&mut *connection, export).await? {
        None => return Ok(Err(Error::NotFound)),
        Some(false) => return Ok(Err(Error::ExportPaused)),
        Some(true) => {}
    }
    let Stored { store_id, id, .. } = *export;
    let running = find(&mut *connection, store_id, id, Which::Running).await?;
    if let Some(run) = running.into_iter().next() {
        return Ok(Ok(Begun::Running(run)));
    }
    let (run_id, now) = (state.clock.new_id(), state.clock.now());
    sqlx::query!(
        "insert into export_runs (
            store_id, id, export_id, status, attempt, resources, walk_place, walk_after, walked,
            seen, total, sent, skipped, failed, created_at, updated_at
        )
        values ($1, $2, $3, 'running', 1, $4, 0, $5, false, 0, $6, 0, 0, 0, $7, $7)",
        store_id,
        run_id,
        id,
        Json(&export.resources.0) as Json<&Vec<String>>,
        Uuid::nil(),
        total,
        now,
    )
    .execute(&mut *connection)
    .await?;
    outbox::wake(&mut *connection, store_id, KIND, id, now).await?;
    let run = one(connection, store_id, id, run_id).await?;
    Ok(run.map(Begun::New))
}

/// A run.
///
/// # Errors
/// `NotFound`, or that the database fails.
pub async fn one(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    run_id: Uuid,
) -> sqlx::Result<Result<Run, Error>> {
    let found = find(db, store_id, export_id, Which::Id(run_id)).await?;
    Ok(found.into_iter().next().ok_or(Error::NotFound))
}

/// Begins a run again from the first record, in the caller's transaction. What was sent is skipped.
///
/// # Errors
/// That there is no such run, that the export is paused, that another run of it is running, or that
/// the database fails.
pub async fn retry(
    state: &State,
    connection: &mut Connection,
    export: &Stored,
    run_id: Uuid,
) -> sqlx::Result<Result<Run, Error>> {
    let Stored { store_id, id, .. } = *export;
    // Before others have to wait.
    let total = count(&mut *connection, export).await?;
    let is_active = lock_export(&mut *connection, export).await?;
    if let Err(error) = one(&mut *connection, store_id, id, run_id).await? {
        return Ok(Err(error));
    }
    match is_active {
        None => return Ok(Err(Error::NotFound)),
        Some(false) => return Ok(Err(Error::ExportPaused)),
        Some(true) => {}
    }
    let running = find(&mut *connection, store_id, id, Which::Running).await?;
    if running.iter().any(|run| run.run_id != run_id) {
        return Ok(Err(Error::ExportRunning));
    }
    let now = state.clock.now();
    sqlx::query!(
        "update export_runs
        set status = 'running',
            attempt = attempt + 1,
            resources = $4,
            walk_place = 0,
            walk_after = $5,
            walked = false,
            seen = 0,
            total = $6,
            sent = 0,
            skipped = 0,
            failed = 0,
            finished_at = null,
            updated_at = $7
        where store_id = $1 and id = $3 and export_id = $2",
        store_id,
        id,
        run_id,
        Json(&export.resources.0) as Json<&Vec<String>>,
        Uuid::nil(),
        total,
        now,
    )
    .execute(&mut *connection)
    .await?;
    outbox::wake(&mut *connection, store_id, KIND, id, now).await?;
    one(connection, store_id, id, run_id).await
}

async fn count(connection: &mut Connection, export: &Stored) -> sqlx::Result<i64> {
    let mut total = 0;
    for entry in export
        .resources
        .iter()
        .filter_map(|path| catalog::entry(path))
    {
        total += entry
            .count(&mut *connection, export.store_id, MOST_COUNTED)
            .await?;
    }
    Ok(total)
}

/// What a run says of its walk.
struct Walk {
    id: Uuid,
    attempt: i32,
    resources: Json<Vec<String>>,
    walk_place: i32,
    walk_after: Uuid,
    seen: i64,
    pending: i64,
}

/// Whether a run of an export has records before it and room for them: then it can be walked.
///
/// # Errors
/// When the database fails.
pub async fn can_walk(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "select id
        from export_runs
        where export_id = $2
            and store_id = $1
            and status = 'running'
            and not walked
            and seen - sent - skipped - failed < $3",
        store_id,
        export_id,
        MOST_PENDING,
    )
    .fetch_optional(db)
    .await
}

/// Walks the next records of a run, in the caller's transaction: each gets a delivery that waits.
///
/// # Errors
/// When the database fails.
pub async fn walk(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    run_id: Uuid,
) -> sqlx::Result<()> {
    let found = sqlx::query_as!(
        Walk,
        r#"select
            id, attempt, resources as "resources: Json<Vec<String>>", walk_place, walk_after, seen,
            seen - sent - skipped - failed as "pending!"
        from export_runs
        where store_id = $1 and id = $2 and status = 'running' and not walked
        for update"#,
        store_id,
        run_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    // Somebody else was faster.
    let Some(walk) = found.filter(|walk| walk.pending < MOST_PENDING) else {
        return Ok(());
    };
    let place = usize::try_from(walk.walk_place).unwrap_or(usize::MAX);
    let entry = walk
        .resources
        .get(place)
        .and_then(|path| catalog::entry(path));
    let ids = match entry {
        Some(entry) => {
            let after = walk.walk_after;
            entry
                .ids_after(&mut *connection, store_id, after, SLICE)
                .await?
        }
        None => Vec::new(),
    };
    let resource = entry.map_or("", |entry| entry.path);
    let wants: Vec<Want> = ids
        .iter()
        .map(|record_id| Want {
            export_id,
            resource: resource.to_owned(),
            record_id: *record_id,
            external_id: None,
            erased_at: None,
        })
        .collect();
    deliveries::want(
        &mut *connection,
        store_id,
        &wants,
        Some(walk.id),
        &state.clock,
    )
    .await?;
    let now = state.clock.now();
    let run = Locked {
        id: walk.id,
        attempt: walk.attempt,
    };
    results::wait_for(&mut *connection, store_id, run, resource, &ids, now).await?;
    let is_full = i64::try_from(ids.len()).is_ok_and(|count| count >= SLICE);
    let (walk_place, walk_after) = match ids.last().filter(|_| is_full) {
        Some(last) => (walk.walk_place, *last),
        None => (walk.walk_place.saturating_add(1), Uuid::nil()),
    };
    let places = i32::try_from(walk.resources.len()).unwrap_or(i32::MAX);
    let step = Step {
        run_id,
        walk_place,
        walk_after,
        walked: walk_place >= places,
        seen: walk.seen + i64::try_from(ids.len()).unwrap_or(0),
    };
    note_step(connection, store_id, &step, now).await
}

/// How far a run has come.
struct Step {
    run_id: Uuid,
    walk_place: i32,
    walk_after: Uuid,
    walked: bool,
    seen: i64,
}

async fn note_step(
    connection: &mut Connection,
    store_id: i64,
    step: &Step,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update export_runs
        set walk_place = $3,
            walk_after = $4,
            walked = $5,
            seen = $6,
            total = case when $5 then $6 else greatest(total, $6) end,
            updated_at = $7
        where store_id = $1 and id = $2",
        store_id,
        step.run_id,
        step.walk_place,
        step.walk_after,
        step.walked,
        step.seen,
        now,
    )
    .execute(&mut *connection)
    .await?;
    complete(connection, store_id, step.run_id, now).await
}

/// A run whose records were all walked and looked at is completed.
pub(super) async fn complete(
    connection: &mut Connection,
    store_id: i64,
    run_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update export_runs
        set status = 'completed', finished_at = $3
        where store_id = $1
            and id = $2
            and status = 'running'
            and walked
            and seen <= sent + skipped + failed",
        store_id,
        run_id,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A run whose counters may be moved: its row is locked.
#[derive(Clone, Copy, Debug)]
pub struct Locked {
    /// Which.
    pub id: Uuid,
    /// Results of earlier attempts don't count any more.
    pub attempt: i32,
}

/// Locks runs, in everybody's order.
///
/// # Errors
/// When the database fails.
pub async fn lock(
    connection: &mut Connection,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<Vec<Locked>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as!(
        Locked,
        "select id, attempt
        from export_runs
        where store_id = $1 and id = any($2)
        order by id
        for update",
        store_id,
        ids,
    )
    .fetch_all(connection)
    .await
}
