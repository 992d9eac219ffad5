//! Messages: what is stored of each, and how it is read.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::status::{Course, Status, Step};
use crate::database::Connection;
use crate::engine::events::{self, Event};

/// The path of messages, in events and in lists.
pub const PATH: &str = "messages";
const SINGULAR: &str = "message";

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// Free text.
    Text {
        /// What the person reads.
        body: String,
    },
    /// An image, a video, an audio or a document behind a link.
    Media {
        /// Which of them.
        media: Media,
        /// Where the provider fetches it.
        link: String,
        /// What stands under it.
        caption: Option<String>,
    },
    /// A template, filled in.
    Template {
        /// Ours.
        template_id: i64,
        /// The provider's name for it.
        name: String,
        /// The provider's word for its language.
        language: String,
        /// Names and values, in the template's order.
        variables: Vec<(String, String)>,
    },
}

impl Content {
    /// As the column `kind` says it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Media { media, .. } => media.as_str(),
            Self::Template { .. } => "template",
        }
    }
}

/// What can stand behind a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Media {
    /// A picture.
    Image,
    /// A video.
    Video,
    /// A recording; it has no caption.
    Audio,
    /// Any other file.
    Document,
}

impl Media {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Document => "document",
        }
    }
}

/// A message that was accepted now.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Whose it is.
    pub store_id: i64,
    /// Made before the first attempt.
    pub id: Uuid,
    /// To whom.
    pub contact_id: Uuid,
    /// Their number, as E.164.
    pub recipient: String,
    /// What is sent.
    pub content: Content,
    /// Through which provider.
    pub provider: &'static str,
    /// When it was accepted.
    pub now: DateTime<Utc>,
}

/// Writes a new message and its event, in the transaction that accepts it.
///
/// # Errors
/// When the database fails.
pub async fn insert(
    connection: &mut Connection,
    new: &NewMessage,
    event_id: Uuid,
) -> sqlx::Result<()> {
    let course = Course::begin(new.now);
    sqlx::query!(
        "insert into messages (
            store_id, id, contact_id, recipient, kind, content, provider, status, timeline, version,
            created_at, updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $10)",
        new.store_id,
        new.id,
        new.contact_id,
        new.recipient,
        new.content.kind(),
        Json(&new.content) as Json<&Content>,
        new.provider,
        course.status.as_str(),
        Json(&course.timeline) as Json<&Vec<Step>>,
        new.now,
    )
    .execute(&mut *connection)
    .await?;
    let event = event(event_id, new.store_id, new.id, 1, new.now);
    events::append(connection, &[&event]).await
}

fn event(id: Uuid, store_id: i64, message_id: Uuid, version: i64, at: DateTime<Utc>) -> Event {
    let verb = if version == 1 { "created" } else { "updated" };
    Event {
        store_id,
        id,
        kind: format!("{SINGULAR}.{verb}"),
        resource: PATH,
        record_id: message_id,
        external_id: None,
        version,
        created_at: at,
    }
}

/// News about a message.
#[derive(Clone, Debug)]
pub struct News {
    /// Which one.
    pub id: Uuid,
    /// Of the event that tells of it.
    pub event_id: Uuid,
    /// What happened; none only for an operator's retry.
    pub steps: Vec<Step>,
    /// The provider's id, once it is known.
    pub provider_message_id: Option<String>,
    /// It is to be tried again, because an operator says so.
    pub requeue: bool,
}

/// A message as it is stored, as far as news change it.
struct Stored {
    id: Uuid,
    status: String,
    provider_message_id: Option<String>,
    timeline: Json<Vec<Step>>,
    version: i64,
    updated_at: DateTime<Utc>,
    erased_at: Option<DateTime<Utc>>,
}

/// Applies news to messages of one store, in the caller's transaction: a version and an event for
/// each message that they change. Gives what each message is then; messages that are not there are
/// left out.
///
/// # Errors
/// When the database fails.
pub async fn apply(
    connection: &mut Connection,
    store_id: i64,
    news: &[News],
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<(Uuid, Status)>> {
    let mut ids: Vec<Uuid> = news.iter().map(|news| news.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut stored = sqlx::query_as!(
        Stored,
        r#"select
            id, status, provider_message_id, timeline as "timeline: Json<Vec<Step>>", version,
            updated_at, erased_at
        from messages
        where store_id = $1 and id = any($2)
        order by id
        for update"#,
        store_id,
        &ids,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut by_id: HashMap<Uuid, Vec<&News>> = HashMap::new();
    for news in news {
        by_id.entry(news.id).or_default().push(news);
    }
    let (mut dirty, mut events) = (Vec::new(), Vec::new());
    for message in &mut stored {
        let before = message.version;
        for news in by_id.remove(&message.id).unwrap_or_default() {
            if message.take(news, now) {
                let (version, at) = (message.version, message.updated_at);
                events.push(event(news.event_id, store_id, message.id, version, at));
            }
        }
        if message.version > before {
            dirty.push(&*message);
        }
    }
    store(connection, store_id, &dirty).await?;
    events::append(connection, &events.iter().collect::<Vec<_>>()).await?;
    let status = |message: &Stored| Status::parse(&message.status).unwrap_or(Status::Unknown);
    Ok(stored
        .iter()
        .map(|message| (message.id, status(message)))
        .collect())
}

impl Stored {
    /// Takes news in; says whether anything changed.
    fn take(&mut self, news: &News, now: DateTime<Utc>) -> bool {
        let mut course = Course {
            status: Status::parse(&self.status).unwrap_or(Status::Unknown),
            timeline: std::mem::take(&mut self.timeline.0),
        };
        let mut changed = false;
        if news.requeue {
            course.requeue(now);
            changed = true;
        }
        let is_erased = self.erased_at.is_some();
        for step in &news.steps {
            let mut step = step.clone();
            if is_erased {
                step.detail = None;
            }
            changed |= course.apply(step);
        }
        // The provider's id of a message contains the person's number.
        if self.provider_message_id.is_none() && !is_erased && news.provider_message_id.is_some() {
            self.provider_message_id
                .clone_from(&news.provider_message_id);
            changed = true;
        }
        course.status.as_str().clone_into(&mut self.status);
        self.timeline = Json(course.timeline);
        if changed {
            self.version += 1;
            self.updated_at = now.max(self.updated_at + TimeDelta::microseconds(1));
        }
        changed
    }

    fn course(&self) -> Course {
        Course {
            status: Status::parse(&self.status).unwrap_or(Status::Unknown),
            timeline: self.timeline.0.clone(),
        }
    }
}

/// Writes back what changed.
async fn store(
    connection: &mut Connection,
    store_id: i64,
    messages: &[&Stored],
) -> sqlx::Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let reasons: Vec<Option<Step>> = messages
        .iter()
        .map(|message| message.course().reason().cloned())
        .collect();
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id).collect();
    let statuses: Vec<&str> = messages.iter().map(|m| m.status.as_str()).collect();
    let provider_ids: Vec<Option<&str>> = messages
        .iter()
        .map(|message| message.provider_message_id.as_deref())
        .collect();
    let timelines: Vec<Json<&Vec<Step>>> = messages.iter().map(|m| Json(&m.timeline.0)).collect();
    let versions: Vec<i64> = messages.iter().map(|message| message.version).collect();
    let times: Vec<DateTime<Utc>> = messages.iter().map(|m| m.updated_at).collect();
    let codes: Vec<Option<&str>> = reasons
        .iter()
        .map(|reason| reason.as_ref().and_then(|step| step.code.as_deref()))
        .collect();
    let details: Vec<Option<&str>> = reasons
        .iter()
        .map(|reason| reason.as_ref().and_then(|step| step.detail.as_deref()))
        .collect();
    sqlx::query!(
        "update messages m
        set status = new.status,
            provider_message_id = new.provider_message_id,
            timeline = new.timeline,
            version = new.version,
            updated_at = new.updated_at,
            error_code = new.error_code,
            error_detail = new.error_detail
        from unnest(
            $2::uuid[], $3::text[], $4::text[], $5::jsonb[], $6::bigint[], $7::timestamptz[],
            $8::text[], $9::text[]
        ) as new (
            id, status, provider_message_id, timeline, version, updated_at, error_code, error_detail
        )
        where m.store_id = $1 and m.id = new.id",
        store_id,
        &ids,
        &statuses as &[&str],
        &provider_ids as &[Option<&str>],
        &timelines as &[Json<&Vec<Step>>],
        &versions,
        &times,
        &codes as &[Option<&str>],
        &details as &[Option<&str>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A message on its way to the provider.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Whose it is.
    pub store_id: i64,
    /// Which one.
    pub id: Uuid,
    /// To whom.
    pub contact_id: Uuid,
    /// Their number, as E.164.
    pub recipient: String,
    /// What is sent.
    pub content: Content,
    /// The provider that it was accepted for.
    pub provider: String,
    /// The person has asked for no more messages since.
    pub opted_out: bool,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
}

/// The messages among these that can still be sent; erased ones can't.
///
/// # Errors
/// When the database fails.
pub async fn outgoing(
    db: impl PgExecutor<'_>,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<Vec<Outgoing>> {
    let rows = sqlx::query!(
        r#"select
            m.id, m.contact_id, m.recipient as "recipient!",
            m.content as "content!: Json<Content>", m.provider, m.created_at,
            c.opted_out_at is not null as "opted_out!"
        from messages m
        join contacts c on c.store_id = m.store_id and c.id = m.contact_id
        where m.store_id = $1
            and m.id = any($2)
            and m.recipient is not null
            and m.content is not null"#,
        store_id,
        ids,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Outgoing {
            store_id,
            id: row.id,
            contact_id: row.contact_id,
            recipient: row.recipient,
            content: row.content.0,
            provider: row.provider,
            opted_out: row.opted_out,
            created_at: row.created_at,
        })
        .collect())
}

/// The message that the provider knows by this id.
///
/// # Errors
/// When the database fails.
pub async fn by_provider_id(
    db: impl PgExecutor<'_>,
    store_id: i64,
    provider_message_id: &str,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "select id
        from messages
        where store_id = $1 and provider_message_id = $2
        limit 1",
        store_id,
        provider_message_id,
    )
    .fetch_optional(db)
    .await
}

/// Why a message failed, or why nobody knows.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageError {
    /// The provider's number as text, or one of ours.
    #[schema(example = "131026")]
    pub code: String,
    /// In words; null once the person has been erased.
    pub detail: Option<String>,
}

/// A message as it is answered.
#[derive(Debug, Serialize, ToSchema)]
pub struct Message {
    /// What the send was answered with.
    pub message_id: Uuid,
    /// What is known of it.
    pub status: Status,
    /// Whose it is.
    pub store_id: i64,
    /// To which number, as E.164; null once the person has been erased.
    #[schema(example = "+33612345678")]
    pub to: Option<String>,
    /// To whom.
    pub contact_id: Uuid,
    /// `text`, `image`, `video`, `audio`, `document` or `template`.
    #[schema(example = "text")]
    pub r#type: String,
    /// The provider's id, once it is known; null again once the person has been erased.
    pub provider_message_id: Option<String>,
    /// Why it failed or is unknown.
    pub error: Option<MessageError>,
    /// What happened, oldest first.
    pub timeline: Vec<Step>,
    /// One more with each change.
    pub version: i64,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// Messages of a store after one of them, in order of acceptance.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: impl PgExecutor<'_>,
    store_id: i64,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<Message>> {
    let next = Uuid::from_u128(after.as_u128().saturating_add(1));
    select(db, store_id, next..=Uuid::max(), limit).await
}

/// One message.
///
/// # Errors
/// When the database fails.
pub async fn one(
    db: impl PgExecutor<'_>,
    store_id: i64,
    id: Uuid,
) -> sqlx::Result<Option<Message>> {
    let found = select(db, store_id, id..=id, 1).await?;
    Ok(found.into_iter().next())
}

async fn select(
    db: impl PgExecutor<'_>,
    store_id: i64,
    ids: RangeInclusive<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Message>> {
    let rows = sqlx::query!(
        r#"select
            id, contact_id, recipient, kind, provider_message_id, status, error_code, error_detail,
            timeline as "timeline: Json<Vec<Step>>", version, created_at, updated_at
        from messages
        where store_id = $1 and id between $2 and $3
        order by id
        limit $4"#,
        store_id,
        ids.start(),
        ids.end(),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Message {
            message_id: row.id,
            status: Status::parse(&row.status).unwrap_or(Status::Unknown),
            store_id,
            to: row.recipient,
            contact_id: row.contact_id,
            r#type: row.kind,
            provider_message_id: row.provider_message_id,
            error: row.error_code.map(|code| MessageError {
                code,
                detail: row.error_detail,
            }),
            timeline: row.timeline.0,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
        .collect())
}
