//! The log: one entry for each call that the receiver took. Before a call it is asked.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use utoipa::ToSchema;
use uuid::Uuid;

use super::definitions::Stored;
use super::pages::{MOST_SCANNED, Page};
use crate::database::{Connection, Database};
use crate::resources::catalog;
use crate::state::State;

/// Entries deleted at a time.
pub const SLICE: i64 = 1_000;

/// An entry, as it is written.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// The how manieth call of the record that the receiver took.
    pub number: i64,
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
            order by l.number desc
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
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    entries: &[NewEntry],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = entries.iter().map(|entry| entry.id).collect();
    let numbers: Vec<i64> = entries.iter().map(|entry| entry.number).collect();
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
            store_id, id, export_id, number, key, resource, record_id, external_id,
            content_sha256, response_status, run_id, sent_at
        )
        select
            $1, id, $2, number, key, resource, record_id, external_id, content_sha256,
            response_status, run_id, $3
        from unnest(
            $4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::uuid[], $9::text[],
            $10::bytea[], $11::smallint[], $12::uuid[]
        ) as new (
            id, number, key, resource, record_id, external_id, content_sha256, response_status,
            run_id
        )
        on conflict (key, export_id, store_id) do nothing",
        store_id,
        export_id,
        now,
        &ids,
        &numbers,
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

/// An entry as it is stored.
struct Row {
    id: Uuid,
    key: String,
    resource: String,
    record_id: Uuid,
    external_id: Option<String>,
    content_sha256: Vec<u8>,
    response_status: i16,
    run_id: Option<Uuid>,
    sent_at: DateTime<Utc>,
}

impl Row {
    fn into_entry(self, retention_days: i32) -> Entry {
        Entry {
            id: self.id,
            key: self.key,
            resource: self.resource,
            record_id: self.record_id,
            external_id: self.external_id,
            content_sha256: hex(&self.content_sha256),
            response_status: self.response_status,
            run_id: self.run_id,
            sent_at: self.sent_at,
            expires_at: self.sent_at + TimeDelta::days(retention_days.into()),
        }
    }
}

/// Entries of an export that still count, oldest first; of one resource alone if one is named.
///
/// # Errors
/// When the database fails.
pub async fn page(
    connection: &mut Connection,
    export: &Stored,
    resource: Option<&str>,
    after: Uuid,
    limit: i64,
    now: DateTime<Utc>,
) -> sqlx::Result<Page<Entry>> {
    let rows = sqlx::query_as!(
        Row,
        "select
            id, key, resource, record_id, external_id, content_sha256, response_status, run_id,
            sent_at
        from (
            select *
            from export_log
            where export_id = $2 and store_id = $1 and id > $3
            order by id
            limit $7
        ) looked_at
        where sent_at > $4 and ($5::text is null or resource = $5)
        order by id
        limit $6",
        export.store_id,
        export.id,
        after,
        kept_after(export.retention_days, now),
        resource,
        limit + 1,
        MOST_SCANNED,
    )
    .fetch_all(&mut *connection)
    .await?;
    let rows = rows.into_iter();
    let rows: Vec<Entry> = rows
        .map(|row| row.into_entry(export.retention_days))
        .collect();
    match Page::full(rows, limit, |entry| entry.id) {
        Ok(page) => Ok(page),
        Err(rows) => {
            let last = sqlx::query_scalar!(
                "select id
                from export_log
                where export_id = $2 and store_id = $1 and id > $3
                order by id
                offset $4
                limit 1",
                export.store_id,
                export.id,
                after,
                MOST_SCANNED - 1,
            );
            let next_after = last.fetch_optional(connection).await?;
            Ok(Page { rows, next_after })
        }
    }
}

/// Entries of one record that still count, oldest first: there are not many.
///
/// # Errors
/// When the database fails.
pub async fn of_record(
    db: impl PgExecutor<'_>,
    export: &Stored,
    record_id: Uuid,
    limit: i64,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Entry>> {
    let rows = sqlx::query_as!(
        Row,
        "select
            id, key, resource, record_id, external_id, content_sha256, response_status, run_id,
            sent_at
        from export_log
        where record_id = $3 and export_id = $2 and store_id = $1 and sent_at > $4
        order by number
        limit $5",
        export.store_id,
        export.id,
        record_id,
        kept_after(export.retention_days, now),
        limit,
    )
    .fetch_all(db)
    .await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|row| row.into_entry(export.retention_days))
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

/// Forgets what was sent of one record; tells how much that was.
///
/// # Errors
/// When the database fails.
async fn forget_record(
    db: impl PgExecutor<'_>,
    export: &Stored,
    record_id: Uuid,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "delete from export_log where record_id = $3 and export_id = $2 and store_id = $1",
        export.store_id,
        export.id,
        record_id,
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Forgets what was sent of records before the calls with these numbers.
///
/// # Errors
/// When the database fails.
pub async fn forget_before(
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    before: &[(Uuid, i64)],
) -> sqlx::Result<()> {
    // One by one, which is seldom: joined with them, the log might be walked.
    for (record_id, number) in before {
        sqlx::query!(
            "delete from export_log
            where record_id = $3 and export_id = $2 and store_id = $1 and number < $4",
            store_id,
            export_id,
            record_id,
            number,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Forgets all that an export has sent, or all of one resource, slice by slice in one walk; tells
/// how much that was.
///
/// # Errors
/// When the database fails.
pub async fn forget_all(
    pool: &Database,
    store_id: i64,
    export_id: Uuid,
    resource: Option<&str>,
) -> sqlx::Result<u64> {
    let (mut after, mut forgotten) = (Uuid::nil(), 0);
    loop {
        let slice = sqlx::query_scalar!(
            "select id
            from export_log
            where export_id = $2 and store_id = $1 and id > $3
            order by id
            limit $4",
            store_id,
            export_id,
            after,
            SLICE,
        )
        .fetch_all(pool)
        .await?;
        let Some(last) = slice.last() else {
            return Ok(forgotten);
        };
        let deleted = sqlx::query!(
            "delete from export_log
            where export_id = $2
                and store_id = $1
                and id > $3
                and id <= $4
                and ($5::text is null or resource = $5)",
            store_id,
            export_id,
            after,
            last,
            resource,
        )
        .execute(pool)
        .await?;
        after = *last;
        forgotten += deleted.rows_affected();
    }
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
    let Some((resource, external_id)) = resource.zip(external_id) else {
        let path = resource.map(|resource| resource.path);
        return forget_all(&state.pool, export.store_id, export.id, path).await;
    };
    let mut connection = state.pool.acquire().await?;
    let record_id = resource
        .find(&mut connection, export.store_id, external_id)
        .await?;
    match record_id {
        Some(record_id) => forget_record(&mut *connection, export, record_id).await,
        None => Ok(0),
    }
}

/// Deletes those of an export's oldest entries that don't count any more; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn purge_slice(
    pool: &Database,
    store_id: i64,
    export_id: Uuid,
    kept_after: DateTime<Utc>,
) -> sqlx::Result<u64> {
    // Only the oldest are looked at: they come first by their ids.
    let oldest = sqlx::query_scalar!(
        "select id
        from export_log
        where export_id = $2 and store_id = $1
        order by id
        limit $3",
        store_id,
        export_id,
        SLICE,
    )
    .fetch_all(pool)
    .await?;
    let Some(last) = oldest.last() else {
        return Ok(0);
    };
    let deleted = sqlx::query!(
        "delete from export_log
        where export_id = $2 and store_id = $1 and id <= $3 and sent_at <= $4",
        store_id,
        export_id,
        last,
        kept_after,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
