//! What runs come to with each record, and their counters, which move with that.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::pages::{MOST_SCANNED, Page};
use super::runs::{Locked, complete};

use crate::database::Connection;

/// Its record waits for its call.
const PENDING: &str = "pending";

/// What a run came to with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it.
    Sent,
    /// It had been sent before.
    Skipped,
    /// The call failed; it may still be made again by the schedule.
    Failed,
}

impl Outcome {
    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// Every outcome that a result can have.
pub const OUTCOMES: &[&str] = &[PENDING, "sent", "skipped", "failed"];

/// Notes that records wait, walked in the present attempt of a run that is locked.
///
/// # Errors
/// When the database fails.
pub async fn wait_for(
    connection: &mut Connection,
    store_id: i64,
    run: Locked,
    resource: &str,
    record_ids: &[Uuid],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into export_results as r (
            store_id, run_id, record_id, resource, attempt, outcome, updated_at
        )
        select $1, $2, record_id, $3, $4, 'pending', $5
        from unnest($6::uuid[]) as new (record_id)
        order by record_id
        on conflict (run_id, record_id, store_id) do update
        set attempt = excluded.attempt,
            outcome = 'pending',
            error_code = null,
            key = null,
            updated_at = excluded.updated_at",
        store_id,
        run.id,
        resource,
        run.attempt,
        now,
        record_ids,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a call has come to, for the run that waits for it.
#[derive(Clone, Debug)]
pub struct News {
    /// Of which record.
    pub record_id: Uuid,
    /// What it came to.
    pub outcome: Outcome,
    /// Why the call failed.
    pub error_code: Option<String>,
    /// The key that it was sent with.
    pub key: Option<String>,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
}

/// Writes down what calls have come to for a locked run. What was sent or skipped in this attempt
/// stays so; what failed may still be sent.
///
/// # Errors
/// When the database fails.
pub async fn tell(
    connection: &mut Connection,
    store_id: i64,
    run: Locked,
    news: &[News],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut record_ids: Vec<Uuid> = news.iter().map(|news| news.record_id).collect();
    record_ids.sort_unstable();
    // Looked up one by one: see `deliveries::lock`.
    let open = sqlx::query!(
        "select locked.*
        from unnest($3::uuid[]) as told (record_id)
        cross join lateral (
            select record_id, outcome
            from export_results r
            where r.run_id = $2
                and r.record_id = told.record_id
                and r.store_id = $1
                and r.attempt = $4
                and r.outcome in ('pending', 'failed')
            limit 1
            for update
        ) locked",
        store_id,
        run.id,
        &record_ids,
        run.attempt,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut moves = Moves::default();
    let mut told: Vec<&News> = Vec::new();
    for row in open {
        let of_record = news.iter().find(|news| news.record_id == row.record_id);
        if let Some(news) = of_record {
            moves.note(&row.outcome, news.outcome);
            told.push(news);
        }
    }
    if told.is_empty() {
        return Ok(());
    }
    write_results(connection, store_id, run, &told, now).await?;
    sqlx::query!(
        "update export_runs
        set sent = sent + $3, skipped = skipped + $4, failed = failed + $5, updated_at = $6
        where store_id = $1 and id = $2",
        store_id,
        run.id,
        moves.sent,
        moves.skipped,
        moves.failed,
        now,
    )
    .execute(&mut *connection)
    .await?;
    complete(connection, store_id, run.id, now).await
}

/// By how much a run's counters move.
#[derive(Default)]
struct Moves {
    sent: i64,
    skipped: i64,
    failed: i64,
}

impl Moves {
    fn note(&mut self, before: &str, after: Outcome) {
        self.failed -= i64::from(before == Outcome::Failed.as_str());
        match after {
            Outcome::Sent => self.sent += 1,
            Outcome::Skipped => self.skipped += 1,
            Outcome::Failed => self.failed += 1,
        }
    }
}

async fn write_results(
    connection: &mut Connection,
    store_id: i64,
    run: Locked,
    news: &[&News],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let record_ids: Vec<Uuid> = news.iter().map(|news| news.record_id).collect();
    let outcomes: Vec<&str> = news.iter().map(|news| news.outcome.as_str()).collect();
    let codes: Vec<Option<&str>> = news.iter().map(|news| news.error_code.as_deref()).collect();
    let keys: Vec<Option<&str>> = news.iter().map(|news| news.key.as_deref()).collect();
    let names: Vec<Option<&str>> = news
        .iter()
        .map(|news| news.external_id.as_deref())
        .collect();
    // They are there, so nothing is inserted: see `deliveries::write`.
    sqlx::query!(
        "insert into export_results (
            store_id, run_id, record_id, resource, external_id, attempt, outcome, error_code, key,
            updated_at
        )
        select $1, $2, record_id, '', external_id, $9, outcome, error_code, key, $3
        from unnest($4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[])
            as new (record_id, outcome, error_code, key, external_id)
        on conflict (run_id, record_id, store_id) do update
        set outcome = excluded.outcome,
            error_code = excluded.error_code,
            key = excluded.key,
            external_id = excluded.external_id,
            updated_at = excluded.updated_at",
        store_id,
        run.id,
        now,
        &record_ids,
        &outcomes as &[&str],
        &codes as &[Option<&str>],
        &keys as &[Option<&str>],
        &names as &[Option<&str>],
        run.attempt,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a run came to with one record.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ExportRunResult)]
pub struct RunResult {
    /// The resource's path.
    pub resource: String,
    /// `id` of the record.
    pub record_id: Uuid,
    /// `external_id` of the record; null for a customer without one or since erased, and for what
    /// nobody has looked at yet.
    pub external_id: Option<String>,
    /// `pending`, `sent`, `skipped` (it had been sent before) or `failed`.
    #[schema(example = "sent")]
    pub outcome: String,
    /// Why the call failed.
    pub error_code: Option<String>,
    /// The key that it was sent with.
    pub key: Option<String>,
    /// When that was written.
    pub updated_at: DateTime<Utc>,
}

/// Results of a run's present attempt, in order of their records' ids.
///
/// # Errors
/// When the database fails.
pub async fn page(
    connection: &mut Connection,
    store_id: i64,
    run: Locked,
    outcome: Option<&str>,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Page<RunResult>> {
    let rows = sqlx::query_as!(
        RunResult,
        "select resource, record_id, external_id, outcome, error_code, key, updated_at
        from (
            select *
            from export_results
            where run_id = $2 and store_id = $1 and record_id > $3
            order by record_id
            limit $7
        ) looked_at
        where attempt = $4 and ($5::text is null or outcome = $5)
        order by record_id
        limit $6",
        store_id,
        run.id,
        after,
        run.attempt,
        outcome,
        limit + 1,
        MOST_SCANNED,
    )
    .fetch_all(&mut *connection)
    .await?;
    match Page::full(rows, limit, |row| row.record_id) {
        Ok(page) => Ok(page),
        Err(rows) => {
            let last = sqlx::query_scalar!(
                "select record_id
                from export_results
                where run_id = $2 and store_id = $1 and record_id > $3
                order by record_id
                offset $4
                limit 1",
                store_id,
                run.id,
                after,
                MOST_SCANNED - 1,
            );
            let next_after = last.fetch_optional(connection).await?;
            Ok(Page { rows, next_after })
        }
    }
}
