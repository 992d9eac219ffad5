//! Saving and deleting exports.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use uuid::Uuid;

use super::definitions::{Export, MOST_EXPORTS, Stored, Which, find, named, place};
use super::input::{ACTIVE, LIVE, Wanted};
use super::{CONSUMER, KIND, signing};
use crate::config::Secret;
use crate::database::Connection;
use crate::engine::consumers::{self, Boundary};
use crate::engine::write::Outcome;
use crate::error::Error;
use crate::outbox;
use crate::secrets::{self, SecretError};
use crate::state::State;
use crate::values::Faults;

/// What saving came to.
#[derive(Debug)]
pub struct Saved {
    /// As it is answered.
    pub export: Export,
    /// What the caller is told.
    pub outcome: Outcome,
    /// Whether there may be something to send now.
    pub woken: bool,
}

/// Creates or replaces an export, in the caller's transaction.
///
/// # Errors
/// That there are too many, that secrets can't be kept, or that the database fails.
pub async fn save(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    wanted: &Wanted,
) -> sqlx::Result<Result<Saved, Error>> {
    let key = state.config.secret_key.as_ref();
    if key.is_none() {
        return Ok(Err(Error::SecretKeyMissing));
    }
    lock(connection, store_id).await?;
    let external_id = wanted.external_id.as_str();
    let found = find(&mut *connection, store_id, Which::ExternalId(external_id)).await?;
    let Some(stored) = found.into_iter().next() else {
        return insert(state, connection, store_id, wanted).await;
    };
    if stored.is(wanted, key) {
        return keep(state, connection, stored).await.map(Ok);
    }
    replace(state, connection, stored, wanted).await
}

/// One lock for all that is done to a store's exports, so that their number can be bounded and
/// nobody ends to follow events that another begins to need.
async fn lock(connection: &mut Connection, store_id: i64) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        "select store_id from stores where store_id = $1 for no key update",
        store_id,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

async fn insert(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    wanted: &Wanted,
) -> sqlx::Result<Result<Saved, Error>> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from exports where store_id = $1"#,
        store_id,
    )
    .fetch_one(&mut *connection)
    .await?;
    if usize::try_from(count).unwrap_or(MOST_EXPORTS) >= MOST_EXPORTS {
        let message = format!("a store can have at most {MOST_EXPORTS} exports");
        return Ok(Err(Error::Invalid(Faults::at("external_id", message))));
    }
    let (id, now) = (state.clock.new_id(), state.clock.now());
    let fresh = wanted.signing_secret.is_none().then(signing::new_secret);
    let secret = wanted.signing_secret.as_ref().map(Secret::expose);
    let secret = secret.or(fresh.as_deref());
    let sealed = match Sealed::of(state, store_id, id, wanted, secret) {
        Ok(sealed) => sealed,
        Err(error) => return Ok(Err(error)),
    };
    let settings = &wanted.settings;
    let from = if settings.mode == LIVE {
        consumers::follow(&mut *connection, store_id, CONSUMER, now).await?
    } else {
        Boundary::default()
    };
    sqlx::query!(
        "insert into exports (
            store_id, id, external_id, status, resources, mode, url, method, headers, header_names,
            signing_secret, idempotency_enabled, strategy, idempotency_header, resend_on_change,
            retention_days, from_position, from_time, created_at, updated_at
        )
        values (
            $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $19
        )",
        store_id,
        id,
        wanted.external_id.as_str(),
        settings.status,
        Json(&settings.resources) as Json<&Vec<String>>,
        settings.mode,
        settings.destination.as_str(),
        settings.method,
        sealed.headers,
        Json(settings.headers.names().collect()) as Json<Vec<&str>>,
        sealed.signing_secret,
        settings.idempotency.enabled,
        settings.idempotency.strategy,
        settings.idempotency.header,
        settings.idempotency.resend_on_change,
        settings.retention_days,
        from.position,
        from.time,
        now,
    )
    .execute(&mut *connection)
    .await?;
    let mut export = again(connection, store_id, id).await?.into_answer();
    export.signing_secret = fresh;
    Ok(Ok(Saved {
        export,
        outcome: Outcome::Created,
        woken: false,
    }))
}

/// Leaves an export as it is; but what it is held up by ends.
async fn keep(state: &State, connection: &mut Connection, stored: Stored) -> sqlx::Result<Saved> {
    let woken = stored.is_active() && stored.held_until.is_some();
    if woken {
        sqlx::query!(
            "update exports set held_until = null where store_id = $1 and id = $2",
            stored.store_id,
            stored.id,
        )
        .execute(&mut *connection)
        .await?;
        let now = state.clock.now();
        outbox::wake(connection, stored.store_id, KIND, stored.id, now).await?;
    }
    Ok(Saved {
        export: stored.into_answer(),
        outcome: Outcome::Unchanged,
        woken,
    })
}

async fn replace(
    state: &State,
    connection: &mut Connection,
    stored: Stored,
    wanted: &Wanted,
) -> sqlx::Result<Result<Saved, Error>> {
    let Stored { store_id, id, .. } = stored;
    let (now, settings) = (state.clock.now(), &wanted.settings);
    // One that can't be opened any more signs nothing: whoever posts is shown another.
    let is_lost = || {
        let opened = stored.opened_secret(state.config.secret_key.as_ref());
        opened.is_err()
    };
    let fresh = (wanted.signing_secret.is_none() && is_lost()).then(signing::new_secret);
    let secret = wanted.signing_secret.as_ref().map(Secret::expose);
    let secret = secret.or(fresh.as_deref());
    let sealed = match Sealed::of(state, store_id, id, wanted, secret) {
        Ok(sealed) => sealed,
        Err(error) => return Ok(Err(error)),
    };
    let from = if settings.mode == LIVE && stored.mode != LIVE {
        consumers::follow(&mut *connection, store_id, CONSUMER, now).await?
    } else {
        Boundary {
            position: stored.from_position,
            time: stored.from_time,
        }
    };
    sqlx::query!(
        "update exports
        set status = $3,
            paused_code = null,
            held_until = null,
            resources = $4,
            mode = $5,
            url = $6,
            method = $7,
            headers = $8,
            header_names = $9,
            signing_secret = coalesce($10, signing_secret),
            idempotency_enabled = $11,
            strategy = $12,
            idempotency_header = $13,
            resend_on_change = $14,
            retention_days = $15,
            from_position = $16,
            from_time = $17,
            updated_at = $18
        where store_id = $1 and id = $2",
        store_id,
        id,
        settings.status,
        Json(&settings.resources) as Json<&Vec<String>>,
        settings.mode,
        settings.destination.as_str(),
        settings.method,
        sealed.headers,
        Json(settings.headers.names().collect()) as Json<Vec<&str>>,
        sealed.signing_secret,
        settings.idempotency.enabled,
        settings.idempotency.strategy,
        settings.idempotency.header,
        settings.idempotency.resend_on_change,
        settings.retention_days,
        from.position,
        from.time,
        now,
    )
    .execute(&mut *connection)
    .await?;
    if settings.mode != LIVE {
        unfollow_if_none(connection, store_id).await?;
    }
    let woken = settings.status == ACTIVE;
    if woken {
        outbox::wake(&mut *connection, store_id, KIND, id, now).await?;
    }
    let mut export = again(connection, store_id, id).await?.into_answer();
    export.signing_secret = fresh;
    Ok(Ok(Saved {
        export,
        outcome: Outcome::Updated,
        woken,
    }))
}

/// The export that was just written.
async fn again(connection: &mut Connection, store_id: i64, id: Uuid) -> sqlx::Result<Stored> {
    let found = find(connection, store_id, Which::Id(id)).await?;
    found.into_iter().next().ok_or(sqlx::Error::RowNotFound)
}

/// What is stored of secrets.
struct Sealed {
    headers: Option<Vec<u8>>,
    /// None: the stored one stays.
    signing_secret: Option<Vec<u8>>,
}

impl Sealed {
    fn of(
        state: &State,
        store_id: i64,
        id: Uuid,
        wanted: &Wanted,
        secret: Option<&str>,
    ) -> Result<Self, Error> {
        let key = state.config.secret_key.as_ref();
        let seal = |what: &str, text: &str| {
            let sealed = secrets::seal(key, &place(store_id, id, what), text);
            sealed.map_err(|error| match error {
                SecretError::NoKey => Error::SecretKeyMissing,
                other => Error::internal(other),
            })
        };
        let headers = &wanted.settings.headers;
        let headers = (!headers.is_empty()).then(|| seal("headers", &headers.to_json()));
        let signing_secret = secret.map(|secret| seal("signing_secret", secret));
        Ok(Self {
            headers: headers.transpose()?,
            signing_secret: signing_secret.transpose()?,
        })
    }
}

/// Nobody has to look at the store's events for exports when none of them is live any more.
async fn unfollow_if_none(connection: &mut Connection, store_id: i64) -> sqlx::Result<()> {
    let is_followed = sqlx::query_scalar!(
        r#"select exists (
            select from exports where store_id = $1 and mode = 'live'
        ) as "exists!""#,
        store_id,
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_followed {
        consumers::unfollow(connection, store_id, CONSUMER).await?;
    }
    Ok(())
}

/// Deletes an export, in the caller's transaction; what it has left behind is for the cleaner.
///
/// # Errors
/// `NotFound`, or that the database fails.
pub async fn delete(
    connection: &mut Connection,
    store_id: i64,
    external_id: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Result<(), Error>> {
    lock(connection, store_id).await?;
    let stored = match named(&mut *connection, store_id, external_id).await? {
        Ok(stored) => stored,
        Err(error) => return Ok(Err(error)),
    };
    sqlx::query!(
        "delete from exports where store_id = $1 and id = $2",
        store_id,
        stored.id,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "insert into export_leftovers (store_id, export_id, deleted_at) values ($1, $2, $3)",
        store_id,
        stored.id,
        now,
    )
    .execute(&mut *connection)
    .await?;
    unfollow_if_none(connection, store_id).await?;
    outbox::remove(connection, store_id, &[stored.id]).await?;
    Ok(Ok(()))
}
