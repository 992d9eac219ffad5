//! What exports keep for a time.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

use super::definitions::{self, MOST_EXPORTS, Stored, Which};
use super::log::{self, SLICE};
use crate::database::Database;
use crate::state::State;

/// Completed runs are kept as long as the log, but at least and at most so many days.
const RUNS_KEPT_DAYS: (i32, i32) = (7, 30);
/// What a deleted export has left behind is looked for so long: calls may still have been under
/// way.
const LEFTOVERS: TimeDelta = TimeDelta::hours(1);

/// Deletes what has been kept long enough, and what deleted exports have left behind, slice by
/// slice; tells how many rows.
///
/// # Errors
/// When the database fails.
pub async fn purge(state: &State, store_id: i64) -> sqlx::Result<u64> {
    let most = i64::try_from(MOST_EXPORTS).unwrap_or(i64::MAX);
    let which = Which::After(Uuid::nil(), most);
    let mut deleted = 0;
    for export in definitions::find(&state.pool, store_id, which).await? {
        deleted += purge_log(state, &export).await?;
        deleted += purge_runs(state, &export).await?;
    }
    Ok(deleted + purge_leftovers(state, store_id).await?)
}

async fn purge_log(state: &State, export: &Stored) -> sqlx::Result<u64> {
    let kept_after = log::kept_after(export.retention_days, state.clock.now());
    let mut deleted = 0;
    loop {
        let slice = log::purge_slice(&state.pool, export.store_id, export.id, kept_after).await?;
        deleted += slice;
        if slice < SLICE.unsigned_abs() {
            return Ok(deleted);
        }
    }
}

async fn purge_runs(state: &State, export: &Stored) -> sqlx::Result<u64> {
    let (least, most) = RUNS_KEPT_DAYS;
    let days = export.retention_days.clamp(least, most);
    let before = state.clock.now() - TimeDelta::days(days.into());
    let runs = sqlx::query_scalar!(
        "select id
        from export_runs
        where export_id = $2 and store_id = $1 and status = 'completed' and finished_at < $3",
        export.store_id,
        export.id,
        before,
    )
    .fetch_all(&state.pool)
    .await?;
    delete_runs(state, export.store_id, &runs).await
}

/// Results first: a run that is gone has none.
async fn delete_runs(state: &State, store_id: i64, runs: &[Uuid]) -> sqlx::Result<u64> {
    let mut deleted = 0;
    for run_id in runs {
        deleted += delete_results(&state.pool, store_id, *run_id).await?;
        let run = sqlx::query!(
            "delete from export_runs where store_id = $1 and id = $2",
            store_id,
            run_id,
        );
        deleted += run.execute(&state.pool).await?.rows_affected();
    }
    Ok(deleted)
}

async fn delete_results(pool: &Database, store_id: i64, run_id: Uuid) -> sqlx::Result<u64> {
    let mut deleted = 0;
    loop {
        let slice = sqlx::query_scalar!(
            "select record_id
            from export_results
            where run_id = $2 and store_id = $1
            order by record_id
            limit $3",
            store_id,
            run_id,
            SLICE,
        )
        .fetch_all(pool)
        .await?;
        let Some(last) = slice.last() else {
            return Ok(deleted);
        };
        let slice = sqlx::query!(
            "delete from export_results where run_id = $2 and store_id = $1 and record_id <= $3",
            store_id,
            run_id,
            last,
        );
        deleted += slice.execute(pool).await?.rows_affected();
    }
}

async fn purge_leftovers(state: &State, store_id: i64) -> sqlx::Result<u64> {
    let leftovers = sqlx::query!(
        "select export_id, deleted_at from export_leftovers where store_id = $1",
        store_id,
    )
    .fetch_all(&state.pool)
    .await?;
    let mut deleted = 0;
    for leftover in leftovers {
        let export_id = leftover.export_id;
        let mut found = log::forget_all(&state.pool, store_id, export_id, None).await?;
        loop {
            let slice = delete_deliveries(&state.pool, store_id, export_id).await?;
            found += slice;
            if slice == 0 {
                break;
            }
        }
        let runs = sqlx::query_scalar!(
            "select id from export_runs where export_id = $2 and store_id = $1",
            store_id,
            export_id,
        )
        .fetch_all(&state.pool)
        .await?;
        found += delete_runs(state, store_id, &runs).await?;
        let old = state.clock.now() - LEFTOVERS;
        if found == 0 {
            end_leftover(&state.pool, store_id, export_id, old).await?;
        }
        deleted += found;
    }
    Ok(deleted)
}

async fn delete_deliveries(pool: &Database, store_id: i64, export_id: Uuid) -> sqlx::Result<u64> {
    let slice = sqlx::query_scalar!(
        "select id
        from export_deliveries
        where export_id = $2 and store_id = $1
        order by id
        limit $3",
        store_id,
        export_id,
        SLICE,
    )
    .fetch_all(pool)
    .await?;
    let Some(last) = slice.last() else {
        return Ok(0);
    };
    let deleted = sqlx::query!(
        "delete from export_deliveries where export_id = $2 and store_id = $1 and id <= $3",
        store_id,
        export_id,
        last,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}

async fn end_leftover(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    before: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from export_leftovers where store_id = $1 and export_id = $2 and deleted_at < $3",
        store_id,
        export_id,
        before,
    )
    .execute(db)
    .await?;
    Ok(())
}
