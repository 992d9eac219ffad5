//! The log: one entry for each call that the receiver took. Before a call it is asked.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use utoipa::ToSchema;
use uuid::Uuid;

use super::definitions::Stored;
use crate::resources::catalog;
use crate::state::State;

/// Entries deleted at a time.
pub const SLICE: i64 = 1_000;

/// An entry, as it is written.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// The idempotency key of the call.
    pub key: String,
    /// The resource's path.
    pub resource: String,
    /// What was sent.
    pub record_id: Uuid,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
    /// Of what was sent.
    pub content_sha256: [u8; 32],
    /// What the receiver answered.
    pub response_status: i16,
    /// The run that waited for it.
    pub run_id: Option<Uuid>,
    /// Ours.
    pub id: Uuid,
}

/// Before this time entries don't count any more.
#[must_use]
pub fn kept_after(retention_days: i32, now: DateTime<Utc>) -> DateTime<Utc> {
    now - TimeDelta::days(retention_days.into())
}

/// The digests of what was sent last of these records, as far as that still counts.
///
/// # Errors
/// When the database fails.
pub async fn latest(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    record_ids: &[Uuid],
    kept_after: DateTime<Utc>,
) -> sqlx::Result<Vec<(Uuid, Vec<u8>)>> {
    let rows = sqlx::query!(
        r#"select wanted.record_id as "record_id!", latest.content_sha256
        from unnest($3::uuid[]) as wanted (record_id)
        cross join lateral (
            select l.content_sha256
            from export_log l
            where l.record_id = wanted.record_id
                and l.export_id = $2
                and l.store_id = $1
                and l.sent_at > $4
            order by l.id desc
            limit 1
        ) latest"#,
        store_id,
        export_id,
        record_ids,
        kept_after,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.record_id, row.content_sha256))
        .collect())
}

/// Writes entries; one that is there already, because a commit was not answered, stays.
///
/// # Errors
/// When the database fails.
pub async fn append(
    connection: &mut PgConnection,
    store_id: i64,
    export_id: Uuid,
    entries: &[NewEntry],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = entries.iter().map(|entry| entry.id).collect();
    let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    let resources: Vec<&str> = entries
        .iter()
        .map(|entry| entry.resource.as_str())
        .collect();
    let record_ids: Vec<Uuid> = entries.iter().map(|entry| entry.record_id).collect();
    let names = entries.iter().map(|entry| entry.external_id.as_deref());
    let external_ids: Vec<Option<&str>> = names.collect();
    let digests: Vec<&[u8]> = entries
        .iter()
        .map(|entry| entry.content_sha256.as_slice())
        .collect();
    let statuses: Vec<i16> = entries.iter().map(|entry| entry.response_status).collect();
    let run_ids: Vec<Option<Uuid>> = entries.iter().map(|entry| entry.run_id).collect();
    sqlx::query!(
        "insert into export_log (
            store_id, id, export_id, key, resource, record_id, external_id, content_sha256,
            response_status, run_id, sent_at
        )
        select
            $1, id, $2, key, resource, record_id, external_id, content_sha256, response_status,
            run_id, $3
        from unnest(
            $4::uuid[], $5::text[], $6::text[], $7::uuid[], $8::text[], $9::bytea[],
            $10::smallint[], $11::uuid[]
        ) as new (
            id, key, resource, record_id, external_id, content_sha256, response_status, run_id
        )
        on conflict (key, export_id, store_id) do nothing",
        store_id,
        export_id,
        now,
        &ids,
        &keys as &[&str],
        &resources as &[&str],
        &record_ids,
        &external_ids as &[Option<&str>],
        &digests as &[&[u8]],
        &statuses,
        &run_ids as &[Option<Uuid>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// An entry as it is read.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ExportLogEntry)]
pub struct Entry {
    /// For the next page.
    #[serde(skip)]
    #[schema(ignore)]
    pub id: Uuid,
    /// The idempotency key of the call.
    pub key: String,
    /// The resource's path.
    pub resource: String,
    /// `id` of the record.
    pub record_id: Uuid,
    /// `external_id` of the record; null for a customer without one or since erased.
    pub external_id: Option<String>,
    /// SHA-256 of what was sent, without its version and times; hexadecimal.
    pub content_sha256: String,
    /// The status that the receiver answered.
    pub response_status: i16,
    /// The run that waited for it.
    pub run_id: Option<Uuid>,
    /// When the receiver had taken it.
    pub sent_at: DateTime<Utc>,
    /// When the entry stops to count.
    pub expires_at: DateTime<Utc>,
}

/// Which entries of an export are meant.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Whose.
    pub export_id: Uuid,
    /// Of one resource alone.
    pub resource: Option<&'a str>,
    /// Of one record alone.
    pub record_id: Option<Uuid>,
}

/// Entries that still count, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: impl PgExecutor<'_>,
    store_id: i64,
    wanted: Wanted<'_>,
    (retention_days, now): (i32, DateTime<Utc>),
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<Entry>> {
    let rows = sqlx::query!(
        "select
            id, key, resource, record_id, external_id, content_sha256, response_status, run_id,
            sent_at
        from export_log
        where export_id = $2
            and store_id = $1
            and ($3::text is null or resource = $3)
            and ($4::uuid is null or record_id = $4)
            and sent_at > $5
            and id > $6
        order by id
        limit $7",
        store_id,
        wanted.export_id,
        wanted.resource,
        wanted.record_id,
        kept_after(retention_days, now),
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    let kept = TimeDelta::days(retention_days.into());
    Ok(rows
        .into_iter()
        .map(|row| Entry {
            id: row.id,
            key: row.key,
            resource: row.resource,
            record_id: row.record_id,
            external_id: row.external_id,
            content_sha256: hex(&row.content_sha256),
            response_status: row.response_status,
            run_id: row.run_id,
            sent_at: row.sent_at,
            expires_at: row.sent_at + kept,
        })
        .collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Forgets the call with this key; says whether it was known.
///
/// # Errors
/// When the database fails.
pub async fn forget_key(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    key: &str,
) -> sqlx::Result<bool> {
    let forgotten = sqlx::query!(
        "delete from export_log where key = $3 and export_id = $2 and store_id = $1",
        store_id,
        export_id,
        key,
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected() > 0)
}

/// Forgets a slice of the calls that are meant; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn forget_slice(
    db: impl PgExecutor<'_>,
    store_id: i64,
    wanted: Wanted<'_>,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "delete from export_log
        where store_id = $1
            and id = any(array(
                select id
                from export_log
                where export_id = $2
                    and store_id = $1
                    and ($3::text is null or resource = $3)
                    and ($4::uuid is null or record_id = $4)
                limit $5
            ))",
        store_id,
        wanted.export_id,
        wanted.resource,
        wanted.record_id,
        SLICE,
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Forgets what was sent of a resource, or of one record of it, or all; tells how much that was.
///
/// # Errors
/// When the database fails.
pub async fn forget(
    state: &State,
    export: &Stored,
    resource: Option<&'static catalog::Entry>,
    external_id: Option<&str>,
) -> sqlx::Result<u64> {
    let mut record_id = None;
    if let Some((resource, external_id)) = resource.zip(external_id) {
        let mut connection = state.pool.acquire().await?;
        let store_id = export.store_id;
        record_id = resource
            .find(&mut connection, store_id, external_id)
            .await?;
        if record_id.is_none() {
            return Ok(0);
        }
    }
    let wanted = Wanted {
        export_id: export.id,
        resource: resource.map(|resource| resource.path),
        record_id,
    };
    let mut forgotten = 0;
    loop {
        let slice = forget_slice(&state.pool, export.store_id, wanted).await?;
        forgotten += slice;
        if slice < SLICE.unsigned_abs() {
            return Ok(forgotten);
        }
    }
}

/// Deletes those of an export's oldest entries that don't count any more; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn purge_slice(
    db: impl PgExecutor<'_>,
    store_id: i64,
    export_id: Uuid,
    kept_after: DateTime<Utc>,
) -> sqlx::Result<u64> {
    // Only the oldest are looked at: they come first by their ids.
    let deleted = sqlx::query!(
        "delete from export_log
        where store_id = $1
            and sent_at <= $3
            and id = any(array(
                select id
                from export_log
                where export_id = $2 and store_id = $1
                order by id
                limit $4
            ))",
        store_id,
        export_id,
        kept_after,
        SLICE,
    )
    .execute(db)
    .await?;
    Ok(deleted.rows_affected())
}
