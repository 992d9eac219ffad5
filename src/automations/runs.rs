//! Runs: what automations did, what they didn't do, and why.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use sqlx::PgExecutor;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::input::MOST_COOLDOWN_S;
use super::rules::Rule;
use super::{KIND, count};
use crate::database::Connection;
use crate::outbox;
use crate::resources::{catalog, customers};
use crate::state::State;

/// Names and values of a message's variables.
type Values = Vec<(String, String)>;

/// Runs deleted at a time.
const SLICE: i64 = 1_000;
/// Runs looked at for one page of those in one state.
const MOST_SCANNED: i64 = 10_000;

/// A run that is made now.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Names it.
    pub id: Uuid,
    /// Whose it is.
    pub automation_id: Uuid,
    /// The same for people.
    pub automation_external_id: String,
    /// What set it off, once.
    pub occasion: Vec<u8>,
    /// What no other run of the automation may be about.
    pub once: Option<Vec<u8>>,
    /// The record: its resource and id.
    pub record: Option<(&'static str, Uuid)>,
    /// Of the record, where it names no person, or what the occasion was called.
    pub external_id: Option<String>,
    /// The person whom it is about.
    pub contact: Option<Vec<u8>>,
    /// What a webhook was called with.
    pub call: Option<Call>,
    /// Why it is not scheduled.
    pub skipped: Option<&'static str>,
    /// The id that its message gets.
    pub message_id: Uuid,
    /// When it is to be executed.
    pub due_at: DateTime<Utc>,
}

/// What a webhook was called for.
#[derive(Clone, Debug)]
pub struct Call {
    /// E.164.
    pub phone: String,
    /// Names and values of the message's variables.
    pub variables: Values,
}

impl NewRun {
    /// A run of an automation.
    #[must_use]
    pub fn of(state: &State, rule: &Rule, occasion: Vec<u8>, since: DateTime<Utc>) -> Self {
        let due_at = since + TimeDelta::seconds(rule.delay_seconds);
        Self {
            id: state.clock.new_id(),
            automation_id: rule.id,
            automation_external_id: rule.external_id.clone(),
            occasion,
            once: None,
            record: None,
            external_id: None,
            contact: None,
            call: None,
            skipped: None,
            message_id: state.clock.new_id(),
            due_at: due_at.max(state.clock.now()),
        }
    }
}

/// A digest of a person's number in a store: enough to find it again, and gone with the person.
#[must_use]
pub fn contact(store_id: i64, phone: &str) -> Vec<u8> {
    digest("contact", store_id, phone)
}

/// A digest of what a caller names an occasion by.
#[must_use]
pub fn occasion(store_id: i64, external_id: &str) -> Vec<u8> {
    digest("occasion", store_id, external_id)
}

fn digest(what: &str, store_id: i64, text: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(b"keyfold automation 1\0");
    hash.update(what.as_bytes());
    hash.update(store_id.to_be_bytes());
    hash.update(text.as_bytes());
    hash.finalize().to_vec()
}

/// Makes runs, and leaves those that are scheduled to be executed; gives their ids.
///
/// # Errors
/// When the database fails; one that is there already is a fault of ours, or a lost race.
pub async fn insert(
    connection: &mut Connection,
    store_id: i64,
    runs: &[NewRun],
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Uuid>> {
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = runs.iter().map(|run| run.id).collect();
    let automations: Vec<Uuid> = runs.iter().map(|run| run.automation_id).collect();
    let names: Vec<&str> = runs
        .iter()
        .map(|run| run.automation_external_id.as_str())
        .collect();
    let occasions: Vec<&[u8]> = runs.iter().map(|run| run.occasion.as_slice()).collect();
    let once: Vec<Option<&[u8]>> = runs.iter().map(|run| run.once.as_deref()).collect();
    let resources: Vec<Option<&str>> = runs
        .iter()
        .map(|run| run.record.map(|(resource, _)| resource))
        .collect();
    let records: Vec<Option<Uuid>> = runs
        .iter()
        .map(|run| run.record.map(|(_, id)| id))
        .collect();
    let external_ids: Vec<Option<&str>> =
        runs.iter().map(|run| run.external_id.as_deref()).collect();
    let contacts: Vec<Option<&[u8]>> = runs.iter().map(|run| run.contact.as_deref()).collect();
    let recipients: Vec<Option<&str>> = runs
        .iter()
        .map(|run| run.call.as_ref().map(|call| call.phone.as_str()))
        .collect();
    let inputs: Vec<Option<Json<&Values>>> = runs
        .iter()
        .map(|run| run.call.as_ref().map(|call| Json(&call.variables)))
        .collect();
    let statuses: Vec<&str> = runs
        .iter()
        .map(|run| {
            if run.skipped.is_some() {
                "skipped"
            } else {
                "scheduled"
            }
        })
        .collect();
    let reasons: Vec<Option<&str>> = runs.iter().map(|run| run.skipped).collect();
    let messages: Vec<Uuid> = runs.iter().map(|run| run.message_id).collect();
    let due: Vec<DateTime<Utc>> = runs.iter().map(|run| run.due_at).collect();
    sqlx::query!(
        "insert into automation_runs (
            store_id, id, automation_id, automation_external_id, occasion, once, resource, record_id,
            external_id, contact, recipient, input, status, reason, message_id, due_at, created_at,
            updated_at
        )
        select
            $1, id, automation_id, automation_external_id, occasion, once, resource, record_id,
            external_id, contact, recipient, input, status, reason, message_id, due_at, $2, $2
        from unnest(
            $3::uuid[], $4::uuid[], $5::text[], $6::bytea[], $7::bytea[], $8::text[], $9::uuid[],
            $10::text[], $11::bytea[], $12::text[], $13::jsonb[], $14::text[], $15::text[],
            $16::uuid[], $17::timestamptz[]
        ) as new (
            id, automation_id, automation_external_id, occasion, once, resource, record_id,
            external_id, contact, recipient, input, status, reason, message_id, due_at
        )",
        store_id,
        now,
        &ids,
        &automations,
        &names as &[&str],
        &occasions as &[&[u8]],
        &once as &[Option<&[u8]>],
        &resources as &[Option<&str>],
        &records as &[Option<Uuid>],
        &external_ids as &[Option<&str>],
        &contacts as &[Option<&[u8]>],
        &recipients as &[Option<&str>],
        &inputs as &[Option<Json<&Values>>],
        &statuses as &[&str],
        &reasons as &[Option<&str>],
        &messages,
        &due,
    )
    .execute(&mut *connection)
    .await?;
    let scheduled = runs.iter().filter(|run| run.skipped.is_none());
    let (ids, due): (Vec<Uuid>, Vec<DateTime<Utc>>) =
        scheduled.map(|run| (run.id, run.due_at)).unzip();
    outbox::append_later(connection, store_id, KIND, &ids, &due, now).await?;
    count("scheduled", ids.len());
    count("skipped", runs.len() - ids.len());
    Ok(ids)
}

/// Which of these an automation has a run about that is scheduled or has sent. Waits for those that are
/// being executed, which may end without having sent anything.
///
/// # Errors
/// When the database fails.
pub async fn known_once(
    db: impl PgExecutor<'_>,
    store_id: i64,
    automation_id: Uuid,
    once: &[&[u8]],
) -> sqlx::Result<Vec<Vec<u8>>> {
    sqlx::query_scalar!(
        r#"select once as "once!"
        from automation_runs
        where store_id = $1 and automation_id = $2 and once = any($3)
        order by id
        for key share"#,
        store_id,
        automation_id,
        once as &[&[u8]],
    )
    .fetch_all(db)
    .await
}

/// With which of these contacts an automation has a run, scheduled or sent, that was made after a
/// time.
///
/// # Errors
/// When the database fails.
pub async fn known_contacts(
    db: impl PgExecutor<'_>,
    store_id: i64,
    automation_id: Uuid,
    contacts: &[&[u8]],
    after: DateTime<Utc>,
) -> sqlx::Result<Vec<Vec<u8>>> {
    sqlx::query_scalar!(
        r#"select distinct contact as "contact!"
        from automation_runs
        where store_id = $1
            and automation_id = $2
            and contact = any($3)
            and created_at > $4
            and status in ('scheduled', 'sent')"#,
        store_id,
        automation_id,
        contacts as &[&[u8]],
        after,
    )
    .fetch_all(db)
    .await
}

/// The run that an occasion had already, and why it was not scheduled.
///
/// # Errors
/// When the database fails.
pub async fn of_occasion(
    db: impl PgExecutor<'_>,
    store_id: i64,
    automation_id: Uuid,
    occasion: &[u8],
) -> sqlx::Result<Option<(Uuid, String, Option<String>)>> {
    let found = sqlx::query!(
        "select id, status, reason
        from automation_runs
        where store_id = $1 and automation_id = $2 and occasion = $3",
        store_id,
        automation_id,
        occasion,
    )
    .fetch_optional(db)
    .await?;
    Ok(found.map(|run| (run.id, run.status, run.reason)))
}

/// The record that a run is about: its resource and id.
///
/// # Errors
/// When the database fails.
pub async fn record(
    db: impl PgExecutor<'_>,
    store_id: i64,
    id: Uuid,
) -> sqlx::Result<Option<(String, Uuid)>> {
    let found = sqlx::query!(
        "select resource, record_id from automation_runs where store_id = $1 and id = $2",
        store_id,
        id,
    );
    let found = found.fetch_optional(db).await?;
    Ok(found.and_then(|run| run.resource.zip(run.record_id)))
}

/// A run that is due.
pub struct Due {
    /// Whose it is.
    pub automation_id: Uuid,
    /// The record: its resource and id.
    pub record: Option<(String, Uuid)>,
    /// The person whom it was about when it was made, if that was known.
    pub contact: Option<Vec<u8>>,
    /// What a webhook was called with.
    pub call: Option<Call>,
    /// The id that its message gets.
    pub message_id: Uuid,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Locks a run that is still scheduled.
///
/// # Errors
/// When the database fails.
pub async fn lock(db: impl PgExecutor<'_>, store_id: i64, id: Uuid) -> sqlx::Result<Option<Due>> {
    let found = sqlx::query!(
        r#"select
            automation_id, resource, record_id, contact, recipient,
            input as "input: Json<Values>", message_id, created_at
        from automation_runs
        where store_id = $1 and id = $2 and status = 'scheduled'
        for update"#,
        store_id,
        id,
    )
    .fetch_optional(db)
    .await?;
    Ok(found.map(|run| Due {
        automation_id: run.automation_id,
        record: run.resource.zip(run.record_id),
        contact: run.contact,
        call: run.recipient.map(|phone| Call {
            phone,
            variables: run.input.map(|input| input.0).unwrap_or_default(),
        }),
        message_id: run.message_id,
        created_at: run.created_at,
    }))
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its message was accepted.
    Sent {
        /// The person whom it went to.
        contact: Vec<u8>,
    },
    /// It was not to be sent after all.
    Skipped(&'static str),
    /// It could not be sent.
    Failed {
        /// The stable code.
        reason: String,
        /// Which variable, for example; never what it says.
        detail: Option<String>,
    },
}

impl Ended {
    /// It could not be sent.
    #[must_use]
    pub fn failed(reason: &str, detail: Option<String>) -> Self {
        Self::Failed {
            reason: reason.to_owned(),
            detail,
        }
    }
}

/// Writes down what became of a run.
///
/// # Errors
/// When the database fails.
pub async fn end(
    connection: &mut Connection,
    store_id: i64,
    id: Uuid,
    ended: &Ended,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let (status, reason, detail, contact) = match ended {
        Ended::Sent { contact } => ("sent", None, None, Some(contact.as_slice())),
        Ended::Skipped(reason) => ("skipped", Some(*reason), None, None),
        Ended::Failed { reason, detail } => {
            ("failed", Some(reason.as_str()), detail.as_deref(), None)
        }
    };
    // What did not send anything is no reason against a later run.
    sqlx::query!(
        "update automation_runs
        set status = $3,
            reason = $4,
            detail = $5,
            contact = case when $4 = 'recipient_erased' then null else coalesce($6, contact) end,
            once = case when $3 = 'sent' then once end,
            recipient = null,
            input = null,
            updated_at = $7
        where store_id = $1 and id = $2",
        store_id,
        id,
        status,
        reason,
        detail,
        contact,
        now,
    )
    .execute(connection)
    .await?;
    count(status, 1);
    Ok(())
}

/// A run as it is answered.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AutomationRun)]
pub struct Run {
    /// Names it.
    pub run_id: Uuid,
    /// `external_id` of the automation.
    pub automation: String,
    /// The path of the record's resource; null: a webhook was called.
    pub resource: Option<String>,
    /// `id` of the record.
    pub record_id: Option<Uuid>,
    /// `external_id` of the record, or of the call; null for a customer without one or since erased.
    pub external_id: Option<String>,
    /// `scheduled`, `sent`, `skipped` or `failed`.
    #[schema(example = "sent")]
    pub status: String,
    /// Why it was skipped or failed: `condition_no_longer_true`, `reentry`, `contact_opted_out`,
    /// `automation_paused`, `automation_deleted`, `recipient_erased`, `recipient_unknown`,
    /// `template_not_found`, `variables_invalid`, `variable_missing`, `variable_not_single`,
    /// `variable_too_long`.
    pub reason: Option<String>,
    /// Which variable, for example.
    pub detail: Option<String>,
    /// The message that was accepted.
    pub message_id: Option<Uuid>,
    /// When it is, or was, to be executed.
    pub due_at: DateTime<Utc>,
    /// When the change was evaluated.
    pub created_at: DateTime<Utc>,
    /// When the status last changed.
    pub updated_at: DateTime<Utc>,
}

/// Which runs are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// Those of an automation.
    Automation(Uuid),
    /// Those about a record.
    Record(Uuid),
}

/// A page of runs, and the run behind which the next one begins.
pub struct Page {
    /// In order.
    pub runs: Vec<Run>,
    /// None at the end. There may be more behind a page that is not full: only so many runs are looked
    /// at for those in one state.
    pub next_after: Option<Uuid>,
}

/// Runs of a store after one of them, in order, at most `limit`.
///
/// # Errors
/// When the database fails.
pub async fn page(
    connection: &mut Connection,
    store_id: i64,
    of: Of,
    status: Option<&str>,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Page> {
    // Two statements, each with its index.
    let mut runs = match of {
        Of::Automation(id) => {
            let found = sqlx::query_as!(
                Run,
                r#"select
                    id as run_id, automation_external_id as automation, resource, record_id,
                    external_id, status, reason, detail,
                    case when status = 'sent' then message_id end as message_id, due_at, created_at,
                    updated_at
                from (
                    select *
                    from automation_runs
                    where store_id = $1 and automation_id = $2 and id > $3
                    order by id
                    limit $6
                ) looked_at
                where $5::text is null or status = $5
                order by id
                limit $4"#,
                store_id,
                id,
                after,
                limit + 1,
                status,
                MOST_SCANNED,
            );
            found.fetch_all(&mut *connection).await?
        }
        // A record has not many.
        Of::Record(id) => {
            let found = sqlx::query_as!(
                Run,
                r#"select
                    id as run_id, automation_external_id as automation, resource, record_id,
                    external_id, status, reason, detail,
                    case when status = 'sent' then message_id end as message_id, due_at, created_at,
                    updated_at
                from automation_runs
                where store_id = $1
                    and record_id = $2
                    and id > $3
                    and ($5::text is null or status = $5)
                order by id
                limit $4"#,
                store_id,
                id,
                after,
                limit + 1,
                status,
            );
            found.fetch_all(&mut *connection).await?
        }
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next_after = if runs.len() > limit {
        runs.truncate(limit);
        runs.last().map(|run| run.run_id)
    } else {
        last_looked_at(connection, store_id, of, after).await?
    };
    name_people(connection, store_id, &mut runs).await?;
    Ok(Page { runs, next_after })
}

/// The last run that was looked at for a page, if there may be more behind it.
async fn last_looked_at(
    connection: &mut Connection,
    store_id: i64,
    of: Of,
    after: Uuid,
) -> sqlx::Result<Option<Uuid>> {
    let Of::Automation(id) = of else {
        return Ok(None);
    };
    sqlx::query_scalar!(
        "select id
        from automation_runs
        where store_id = $1 and automation_id = $2 and id > $3
        order by id
        offset $4
        limit 1",
        store_id,
        id,
        after,
        MOST_SCANNED - 1,
    )
    .fetch_optional(connection)
    .await
}

/// The present external ids of people, which runs don't keep.
async fn name_people(
    connection: &mut Connection,
    store_id: i64,
    runs: &mut [Run],
) -> sqlx::Result<()> {
    let is_person = |run: &Run| {
        let entry = run.resource.as_deref().and_then(catalog::entry);
        entry.is_some_and(|entry| entry.is_person)
    };
    let ids: Vec<Uuid> = runs
        .iter()
        .filter(|run| is_person(run))
        .filter_map(|run| run.record_id)
        .collect();
    if ids.is_empty() {
        return Ok(());
    }
    let names = customers::external_ids(connection, store_id, &ids).await?;
    for run in runs.iter_mut().filter(|run| is_person(run)) {
        let name = names.iter().find(|(id, _)| Some(*id) == run.record_id);
        run.external_id = name.map(|(_, name)| name.clone());
    }
    Ok(())
}

/// Deletes runs that sent nothing and ended longer ago than events are kept, and those that sent
/// something and can't keep a later one from anything any more; tells how many.
///
/// # Errors
/// When the database fails.
pub async fn purge(state: &State, store_id: i64) -> sqlx::Result<u64> {
    let now = state.clock.now();
    let kept = TimeDelta::days(i64::from(state.config.event_retention_days));
    let most_cooldown = TimeDelta::seconds(MOST_COOLDOWN_S);
    let mut deleted = 0;
    loop {
        let slice = sqlx::query!(
            "delete from automation_runs
            where store_id = $1
                and id = any(array(
                    select id
                    from automation_runs
                    where store_id = $1
                        and status in ('skipped', 'failed')
                        and updated_at < $2
                    limit $3
                ))",
            store_id,
            now - kept,
            SLICE,
        );
        let ended = slice.execute(&state.pool).await?.rows_affected();
        let slice = sqlx::query!(
            "delete from automation_runs
            where store_id = $1
                and id = any(array(
                    select id
                    from automation_runs
                    where store_id = $1
                        and status = 'sent'
                        and once is null
                        and updated_at < $2
                    limit $3
                ))",
            store_id,
            now - kept.max(most_cooldown),
            SLICE,
        );
        let sent = slice.execute(&state.pool).await?.rows_affected();
        deleted += ended + sent;
        if ended.max(sent) < SLICE.unsigned_abs() {
            return Ok(deleted);
        }
    }
}
