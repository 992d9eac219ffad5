//! How each store reaches its shoppers: the sandbox unless an operator sets another channel.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;

use crate::config::{Secret, SecretKey};
use crate::database::Connection;
use crate::secrets::{self, SecretError};

/// Who hands messages over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// Accepts, records and "delivers" without leaving the machine.
    Sandbox,
    /// Meta's Cloud API.
    Whatsapp,
}

impl ProviderName {
    /// As it is stored and answered.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Whatsapp => "whatsapp",
        }
    }

    fn parse(text: &str) -> Self {
        if text == "whatsapp" {
            Self::Whatsapp
        } else {
            Self::Sandbox
        }
    }
}

/// A store's channel as people see it, without its token.
#[derive(Clone, Debug, Serialize)]
pub struct Channel {
    /// Whose it is.
    pub store_id: i64,
    /// Who hands messages over.
    pub provider: ProviderName,
    /// The provider's id of the number that messages come from.
    pub phone_number_id: Option<String>,
    /// The provider's id of the account that templates belong to.
    pub waba_id: Option<String>,
    /// Nothing leaves before, because of `paused_code`.
    pub paused_until: Option<DateTime<Utc>>,
    /// The provider's code that paused it.
    pub paused_code: Option<String>,
}

/// What an operator says of a channel.
pub struct NewChannel<'a> {
    /// Whose it is.
    pub store_id: i64,
    /// Who hands messages over.
    pub provider: ProviderName,
    /// See [`Channel`].
    pub phone_number_id: Option<&'a str>,
    /// See [`Channel`].
    pub waba_id: Option<&'a str>,
    /// The provider's access token, sealed.
    pub access_token: Option<&'a [u8]>,
}

/// Where the token of a store's channel belongs.
#[must_use]
pub fn token_place(store_id: i64) -> String {
    format!("access token of channel {store_id}")
}

/// Sets a store's channel.
///
/// # Errors
/// When the database fails, the store is unknown or the number is another store's.
pub async fn set(
    connection: &mut Connection,
    new: &NewChannel<'_>,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into channels (
            store_id, provider, phone_number_id, waba_id, access_token, created_at, updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $6)
        on conflict (store_id) do update
        set provider = excluded.provider,
            phone_number_id = excluded.phone_number_id,
            waba_id = excluded.waba_id,
            access_token = excluded.access_token,
            updated_at = excluded.updated_at",
        new.store_id,
        new.provider.as_str(),
        new.phone_number_id,
        new.waba_id,
        new.access_token,
        now,
    )
    .execute(&mut *connection)
    .await?;
    if let Some(number) = new.phone_number_id {
        sqlx::query!(
            "insert into channel_numbers (phone_number_id, store_id)
            values ($1, $2)
            on conflict (phone_number_id) do update set store_id = excluded.store_id",
            number,
            new.store_id,
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// A store's channel: the sandbox if nobody set one.
///
/// # Errors
/// When the database fails.
pub async fn show(connection: &mut Connection, store_id: i64) -> sqlx::Result<Channel> {
    let channel = sqlx::query!(
        "select provider, phone_number_id, waba_id from channels where store_id = $1",
        store_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let state = sqlx::query!(
        "select paused_until, paused_code from channel_states where store_id = $1",
        store_id,
    )
    .fetch_optional(connection)
    .await?;
    let (paused_until, paused_code) = state
        .map(|row| (row.paused_until, row.paused_code))
        .unwrap_or_default();
    let (provider, phone_number_id, waba_id) = channel
        .map(|row| (row.provider, row.phone_number_id, row.waba_id))
        .unwrap_or_default();
    Ok(Channel {
        store_id,
        provider: ProviderName::parse(&provider),
        phone_number_id,
        waba_id,
        paused_until,
        paused_code,
    })
}

/// Who hands over a store's messages.
///
/// # Errors
/// When the database fails.
pub async fn provider(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<ProviderName> {
    let found = sqlx::query_scalar!(
        "select provider from channels where store_id = $1",
        store_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(ProviderName::parse(&found.unwrap_or_default()))
}

/// What is needed to talk to the provider.
#[derive(Clone, Debug)]
pub enum Access {
    /// Nothing.
    Sandbox,
    /// A number, an account and a token.
    Whatsapp {
        /// The number that messages come from.
        phone_number_id: String,
        /// The account that templates belong to.
        waba_id: String,
        /// Or why it can't be opened.
        token: Result<Secret, SecretError>,
        /// Since when the channel is as it is.
        set_at: DateTime<Utc>,
    },
}

impl Access {
    /// Whose provider it is.
    #[must_use]
    pub fn provider(&self) -> ProviderName {
        match self {
            Self::Sandbox => ProviderName::Sandbox,
            Self::Whatsapp { .. } => ProviderName::Whatsapp,
        }
    }
}

/// Until when a store's messages are held back.
///
/// # Errors
/// When the database fails.
pub async fn paused_until(
    db: impl PgExecutor<'_>,
    store_id: i64,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    let found = sqlx::query_scalar!(
        "select paused_until from channel_states where store_id = $1",
        store_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(found.flatten())
}

/// What is needed to talk to a store's provider.
///
/// # Errors
/// When the database fails.
pub async fn access(
    db: impl PgExecutor<'_>,
    key: Option<&SecretKey>,
    store_id: i64,
) -> sqlx::Result<Access> {
    let found = sqlx::query!(
        r#"select
            phone_number_id as "phone_number_id!", waba_id as "waba_id!",
            access_token as "access_token!", updated_at
        from channels
        where store_id = $1 and provider = 'whatsapp'"#,
        store_id,
    )
    .fetch_optional(db)
    .await?;
    Ok(found.map_or(Access::Sandbox, |row| Access::Whatsapp {
        phone_number_id: row.phone_number_id,
        waba_id: row.waba_id,
        token: secrets::open(key, &token_place(store_id), &row.access_token),
        set_at: row.updated_at,
    }))
}

/// The store that a provider's number belongs to, or belonged to last.
///
/// # Errors
/// When the database fails.
pub async fn store_of_number(
    db: impl PgExecutor<'_>,
    phone_number_id: &str,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "select store_id from channel_numbers where phone_number_id = $1",
        phone_number_id,
    )
    .fetch_optional(db)
    .await
}

/// Lets nothing of a store leave before a time, unless its channel was set anew since.
///
/// # Errors
/// When the database fails.
pub async fn pause(
    db: impl PgExecutor<'_>,
    store_id: i64,
    set_at: DateTime<Utc>,
    until: DateTime<Utc>,
    code: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into channel_states (store_id, paused_until, paused_code)
        select c.store_id, $3, $4
        from channels c
        where c.store_id = $1 and c.updated_at = $2
        on conflict (store_id) do update
        set paused_until = excluded.paused_until, paused_code = excluded.paused_code
        where channel_states.paused_until is null
            or channel_states.paused_until < excluded.paused_until",
        store_id,
        set_at,
        until,
        code,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Lets a store's messages leave again.
///
/// # Errors
/// When the database fails.
pub async fn resume(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "update channel_states
        set paused_until = null, paused_code = null, next_send_at = null, parked_until = null
        where store_id = $1",
        store_id,
    )
    .execute(db)
    .await?;
    Ok(())
}
