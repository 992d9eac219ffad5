//! Exports as they are stored, and as they are answered.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::destination::Destination;
use super::headers::Headers;
use super::input::{ACTIVE, Idempotency, PAUSED, Settings, Wanted};
use super::signing::Signer;
use crate::config::{Secret, SecretKey};
use crate::database::Connection;
use crate::engine::consumers::Boundary;
use crate::error::Error;
use crate::secrets::{self, SecretError};
use crate::values::ExternalId;

/// Exports of a store.
pub const MOST_EXPORTS: usize = 100;
/// The receiver said that it is gone for good.
const GONE: &str = "gone";

/// An export as it is answered: without its secrets.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Export {
    /// Ours.
    pub id: Uuid,
    /// Whose it is.
    pub store_id: i64,
    /// Its key.
    pub external_id: String,
    /// `active` or `paused`.
    #[schema(example = "active")]
    pub status: String,
    /// Why it pauses, where nobody asked for it: `gone` (the receiver answered 410).
    pub paused_code: Option<String>,
    /// The paths of the resources whose records are sent.
    pub resources: Vec<String>,
    /// `live` or `manual`.
    #[schema(example = "live")]
    pub mode: String,
    /// Where to.
    pub url: String,
    /// How.
    #[schema(example = "PUT")]
    pub method: String,
    /// The names of the headers that calls carry; their values are never shown.
    pub header_names: Vec<String>,
    /// How calls are kept from being made twice.
    pub idempotency: Idempotency,
    /// For how many days the log keeps what was sent.
    pub retention_days: i32,
    /// What calls are signed with: only in the answer that made it, else null.
    pub signing_secret: Option<String>,
    /// When it was first posted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// An export as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Ours.
    pub id: Uuid,
    /// Whose it is.
    pub store_id: i64,
    /// Its key.
    pub external_id: String,
    /// See [`Export`].
    pub status: String,
    /// See [`Export`].
    pub paused_code: Option<String>,
    /// See [`Export`].
    pub resources: Json<Vec<String>>,
    /// See [`Export`].
    pub mode: String,
    /// See [`Export`].
    pub url: String,
    /// See [`Export`].
    pub method: String,
    /// Sealed.
    pub headers: Option<Vec<u8>>,
    /// See [`Export`].
    pub header_names: Json<Vec<String>>,
    /// Sealed.
    pub signing_secret: Vec<u8>,
    /// See [`Idempotency`].
    pub idempotency_enabled: bool,
    /// See [`Idempotency`].
    pub strategy: String,
    /// See [`Idempotency`].
    pub idempotency_header: Option<String>,
    /// See [`Idempotency`].
    pub resend_on_change: bool,
    /// See [`Export`].
    pub retention_days: i32,
    /// Events up to here were there when it became live.
    pub from_position: i64,
    /// See [`Boundary`].
    pub from_time: Option<DateTime<Utc>>,
    /// The receiver wants no call before.
    pub held_until: Option<DateTime<Utc>>,
    /// When it was first posted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// What a call needs of an export's secrets.
#[derive(Clone)]
pub struct Secrets {
    /// Sent with each call.
    pub headers: Headers,
    /// Signs each call.
    pub signer: Signer,
}

impl Stored {
    /// Whether calls are made.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status == ACTIVE
    }

    /// How calls are kept from being made twice.
    #[must_use]
    pub fn idempotency(&self) -> Idempotency {
        Idempotency {
            enabled: self.idempotency_enabled,
            strategy: self.strategy.clone(),
            header: self.idempotency_header.clone(),
            resend_on_change: self.resend_on_change,
        }
    }

    /// As it is answered.
    #[must_use]
    pub fn into_answer(self) -> Export {
        Export {
            idempotency: self.idempotency(),
            id: self.id,
            store_id: self.store_id,
            external_id: self.external_id,
            status: self.status,
            paused_code: self.paused_code,
            resources: self.resources.0,
            mode: self.mode,
            url: self.url,
            method: self.method,
            header_names: self.header_names.0,
            retention_days: self.retention_days,
            signing_secret: None,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }

    /// What is sealed.
    ///
    /// # Errors
    /// Without the key that it was sealed under.
    pub fn secrets(&self, key: Option<&SecretKey>) -> Result<Secrets, SecretError> {
        let secret = self.opened_secret(key)?;
        let signer = Signer::of_sealed(&secret).ok_or(SecretError::Broken)?;
        let headers = self.opened_headers(key)?;
        Ok(Secrets { headers, signer })
    }

    /// What calls are signed with.
    ///
    /// # Errors
    /// Without the key that it was sealed under.
    pub fn opened_secret(&self, key: Option<&SecretKey>) -> Result<Secret, SecretError> {
        let place = place(self.store_id, self.id, "signing_secret");
        secrets::open(key, &place, &self.signing_secret)
    }

    fn opened_headers(&self, key: Option<&SecretKey>) -> Result<Headers, SecretError> {
        let Some(sealed) = &self.headers else {
            return Ok(Headers::default());
        };
        let place = place(self.store_id, self.id, "headers");
        let text = secrets::open(key, &place, sealed)?;
        Headers::from_json(text.expose()).ok_or(SecretError::Broken)
    }

    /// Whether it is what is wanted already.
    #[must_use]
    pub fn is(&self, wanted: &Wanted, key: Option<&SecretKey>) -> bool {
        // What can't be opened any more is sealed anew.
        let opened = self.opened_headers(key).and_then(|headers| {
            let secret = self.opened_secret(key)?;
            Ok((headers, secret))
        });
        let Ok((headers, secret)) = opened else {
            return false;
        };
        let settings = Settings {
            status: self.status.clone(),
            resources: self.resources.0.clone(),
            mode: self.mode.clone(),
            destination: Destination::from_stored(self.url.clone()),
            method: self.method.clone(),
            headers,
            idempotency: self.idempotency(),
            retention_days: self.retention_days,
        };
        let wanted_secret = wanted.signing_secret.as_ref();
        let is_secret_kept = wanted_secret.is_none_or(|wanted| wanted.expose() == secret.expose());
        is_secret_kept && settings == wanted.settings
    }
}

/// Where a secret of an export belongs.
pub(super) fn place(store_id: i64, id: Uuid, what: &str) -> String {
    format!("export {store_id} {id} {what}")
}

/// Which exports of a store are looked for.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// The one with this id.
    Id(Uuid),
    /// The one with this external id.
    ExternalId(&'a str),
    /// So many after one of them, in order of creation.
    After(Uuid, i64),
}

/// Exports of a store.
///
/// # Errors
/// When the database fails.
pub async fn find(
    db: impl PgExecutor<'_>,
    store_id: i64,
    which: Which<'_>,
) -> sqlx::Result<Vec<Stored>> {
    let (id, external_id, after, limit) = match which {
        Which::Id(id) => (Some(id), None, Uuid::nil(), 1),
        Which::ExternalId(external_id) => (None, Some(external_id), Uuid::nil(), 1),
        Which::After(after, limit) => (None, None, after, limit),
    };
    sqlx::query_as!(
        Stored,
        r#"select
            id, store_id, external_id, status, paused_code,
            resources as "resources: Json<Vec<String>>", mode, url, method, headers,
            header_names as "header_names: Json<Vec<String>>", signing_secret, idempotency_enabled,
            strategy, idempotency_header, resend_on_change, retention_days, from_position,
            from_time, held_until, created_at, updated_at
        from exports
        where store_id = $1
            and ($2::uuid is null or id = $2)
            and ($3::text is null or external_id = $3)
            and id > $4
        order by id
        limit $5"#,
        store_id,
        id,
        external_id,
        after,
        limit,
    )
    .fetch_all(db)
    .await
}

/// The export with this external id.
///
/// # Errors
/// `NotFound`, or that the database fails.
pub async fn named(
    db: impl PgExecutor<'_>,
    store_id: i64,
    external_id: &str,
) -> sqlx::Result<Result<Stored, Error>> {
    // What can't be an external id names nothing, and might be more than Postgres takes.
    if ExternalId::parse(external_id).is_err() {
        return Ok(Err(Error::NotFound));
    }
    let found = find(db, store_id, Which::ExternalId(external_id)).await?;
    Ok(found.into_iter().next().ok_or(Error::NotFound))
}

/// A live export, as far as events go.
#[derive(Clone, Debug)]
pub struct Live {
    /// Which.
    pub id: Uuid,
    /// Whose changes it wants.
    pub resources: Json<Vec<String>>,
    /// Behind which position.
    pub from_position: i64,
    /// See [`Boundary`].
    pub from_time: Option<DateTime<Utc>>,
}

impl Live {
    /// Behind which events it looks.
    #[must_use]
    pub fn from(&self) -> Boundary {
        Boundary {
            position: self.from_position,
            time: self.from_time,
        }
    }
}

/// The live exports of a store, those that pause among them.
///
/// # Errors
/// When the database fails.
pub async fn live(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<Vec<Live>> {
    sqlx::query_as!(
        Live,
        r#"select id, resources as "resources: Json<Vec<String>>", from_position, from_time
        from exports
        where store_id = $1 and mode = 'live'"#,
        store_id,
    )
    .fetch_all(db)
    .await
}

/// An export as it was when its calls were made.
#[derive(Clone, Copy, Debug)]
pub struct AsCalled {
    /// Whose it is.
    pub store_id: i64,
    /// Which.
    pub id: Uuid,
    /// When it had last changed.
    pub updated_at: DateTime<Utc>,
}

/// Makes no calls of an export before a time, if it is still the one that was called.
///
/// # Errors
/// When the database fails.
pub async fn hold_until(
    connection: &mut Connection,
    export: AsCalled,
    until: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update exports
        set held_until = greatest(held_until, $4)
        where store_id = $1 and id = $2 and updated_at = $3",
        export.store_id,
        export.id,
        export.updated_at,
        until,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Pauses an export whose receiver is gone for good, if it is still the one that was called.
///
/// # Errors
/// When the database fails.
pub async fn pause_gone(
    connection: &mut Connection,
    export: AsCalled,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update exports
        set status = $4, paused_code = $5, updated_at = $6
        where store_id = $1 and id = $2 and updated_at = $3",
        export.store_id,
        export.id,
        export.updated_at,
        PAUSED,
        GONE,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
