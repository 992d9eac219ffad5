//! The people whom a store writes to: their number, the provider's id, the service window, and
//! whether they want to hear from it.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::database::Connection;

/// How long after a person has written a free-form message may be sent to them.
pub const SERVICE_WINDOW: TimeDelta = TimeDelta::hours(24);

/// Words that, alone in a message, end all messages to a person. Words that people also use for other
/// things (`cancel`, `end`) are not among them.
const STOP_WORDS: &[&str] = &[
    "stop",
    "stopall",
    "stop all",
    "unsubscribe",
    "optout",
    "opt out",
];
/// Words that take it back.
const START_WORDS: &[&str] = &["start", "unstop", "subscribe"];

/// What an inbound text says about further messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// No more.
    Stop,
    /// They may come again.
    Start,
}

impl Wish {
    /// The wish in a text, if it is nothing but that.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let text = text.trim().trim_end_matches(['.', '!']).to_lowercase();
        if STOP_WORDS.contains(&text.as_str()) {
            Some(Self::Stop)
        } else if START_WORDS.contains(&text.as_str()) {
            Some(Self::Start)
        } else {
            None
        }
    }
}

/// A contact as a send sees it. Its row is locked while the send is accepted.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Names it.
    pub id: Uuid,
    /// When the person last wrote.
    pub last_inbound_at: Option<DateTime<Utc>>,
    /// Since when the person wants no messages.
    pub opted_out_at: Option<DateTime<Utc>>,
}

impl Contact {
    /// Whether a free-form message may be sent now.
    #[must_use]
    pub fn is_within_service_window(&self, now: DateTime<Utc>) -> bool {
        self.last_inbound_at
            .is_some_and(|last| now - last < SERVICE_WINDOW)
    }
}

/// What a send says of the person besides their number.
#[derive(Clone, Debug, Default)]
pub struct Known<'a> {
    /// As they are called.
    pub name: Option<&'a str>,
    /// Their address.
    pub email: Option<&'a str>,
}

/// Finds or makes the contact with this number and locks it.
///
/// # Errors
/// When the database fails.
pub async fn upsert(
    connection: &mut Connection,
    store_id: i64,
    phone: &str,
    known: &Known<'_>,
    new_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Contact> {
    sqlx::query_as!(
        Contact,
        "insert into contacts (store_id, id, phone, name, email, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $6)
        on conflict (phone, store_id) where phone is not null do update
        set name = coalesce(excluded.name, contacts.name),
            email = coalesce(excluded.email, contacts.email),
            updated_at = excluded.updated_at
        returning id, last_inbound_at, opted_out_at",
        store_id,
        new_id,
        phone,
        known.name,
        known.email,
        now,
    )
    .fetch_one(connection)
    .await
}

/// Who a provider's event is from. One of the two ids is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sender<'a> {
    /// E.164, unless the person keeps the number to themselves.
    pub phone: Option<&'a str>,
    /// The provider's own id.
    pub provider_user_id: Option<&'a str>,
    /// As they call themselves.
    pub name: Option<&'a str>,
}

/// Locks the contacts with these numbers and ids, in everybody's order.
///
/// # Errors
/// When the database fails.
pub async fn lock_all(
    connection: &mut Connection,
    store_id: i64,
    phones: &[&str],
    provider_user_ids: &[&str],
) -> sqlx::Result<()> {
    let mut ids = sqlx::query_scalar!(
        "select id from contacts where store_id = $1 and phone = any($2)",
        store_id,
        phones as &[&str],
    )
    .fetch_all(&mut *connection)
    .await?;
    ids.extend(
        sqlx::query_scalar!(
            "select id from contacts where store_id = $1 and provider_user_id = any($2)",
            store_id,
            provider_user_ids as &[&str],
        )
        .fetch_all(&mut *connection)
        .await?,
    );
    sqlx::query_scalar!(
        "select id from contacts where store_id = $1 and id = any($2) order by id for update",
        store_id,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// What is stored of a contact, as far as events of the provider change it.
struct Stored {
    id: Uuid,
    phone: Option<String>,
    last_inbound_at: Option<DateTime<Utc>>,
    opted_out_at: Option<DateTime<Utc>>,
    wish_at: Option<DateTime<Utc>>,
}

/// Notes that a person wrote, and what they wish. Makes the contact if need be. Who has the sender's
/// number is the contact, since that is where messages are sent; what the provider's id was known by
/// before joins it, or, if it has another number, hands the id over.
///
/// # Errors
/// When the database fails.
pub async fn heard_from(
    connection: &mut Connection,
    store_id: i64,
    sender: &Sender<'_>,
    heard: Heard,
    new_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let by_phone = find(connection, store_id, sender.phone, None).await?;
    let by_user = find(connection, store_id, None, sender.provider_user_id).await?;
    let (id, other) = match (by_phone, by_user) {
        (Some(phone), Some(user)) if phone.id != user.id => (phone.id, Some(user)),
        (Some(same), _) => (same.id, None),
        // Another number than the one that is known: the person has a new one.
        (None, Some(user)) if user.phone.is_some() && sender.phone.is_some() => {
            (new_id, Some(user))
        }
        (None, Some(user)) => (user.id, None),
        (None, None) => (new_id, None),
    };
    if let Some(other) = &other {
        give_up(connection, store_id, other).await?;
    }
    if id == new_id {
        insert(connection, store_id, id, sender, now).await?;
    }
    if let Some(other) = &other {
        inherit(connection, store_id, id, other).await?;
    }
    update(connection, store_id, id, sender, heard, now).await
}

async fn find(
    connection: &mut Connection,
    store_id: i64,
    phone: Option<&str>,
    provider_user_id: Option<&str>,
) -> sqlx::Result<Option<Stored>> {
    // Two statements, each with its index: one with `or` could walk the store.
    if let Some(phone) = phone {
        return sqlx::query_as!(
            Stored,
            "select id, phone, last_inbound_at, opted_out_at, wish_at
            from contacts
            where store_id = $1 and phone = $2
            for update",
            store_id,
            phone,
        )
        .fetch_optional(connection)
        .await;
    }
    let Some(user) = provider_user_id else {
        return Ok(None);
    };
    sqlx::query_as!(
        Stored,
        "select id, phone, last_inbound_at, opted_out_at, wish_at
        from contacts
        where store_id = $1 and provider_user_id = $2
        for update",
        store_id,
        user,
    )
    .fetch_optional(connection)
    .await
}

/// A contact that turned out to be another one goes, or keeps its number alone.
async fn give_up(connection: &mut Connection, store_id: i64, other: &Stored) -> sqlx::Result<()> {
    if other.phone.is_none() {
        return delete(connection, store_id, other.id).await;
    }
    sqlx::query!(
        "update contacts set provider_user_id = null where store_id = $1 and id = $2",
        store_id,
        other.id,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert(
    connection: &mut Connection,
    store_id: i64,
    id: Uuid,
    sender: &Sender<'_>,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into contacts (store_id, id, phone, provider_user_id, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $5)",
        store_id,
        id,
        sender.phone,
        sender.provider_user_id,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a person said under another name counts.
async fn inherit(
    connection: &mut Connection,
    store_id: i64,
    id: Uuid,
    other: &Stored,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update contacts
        set last_inbound_at = greatest(last_inbound_at, $3),
            opted_out_at = case
                when $5::timestamptz is null or $5 < wish_at then opted_out_at
                when wish_at is null or $5 > wish_at then $4
                else coalesce(opted_out_at, $4)
            end,
            wish_at = greatest(wish_at, $5)
        where store_id = $1 and id = $2",
        store_id,
        id,
        other.last_inbound_at,
        other.opted_out_at,
        other.wish_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut Connection,
    store_id: i64,
    id: Uuid,
    sender: &Sender<'_>,
    heard: Heard,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let (stop, start) = (
        heard.wish == Some(Wish::Stop),
        heard.wish == Some(Wish::Start),
    );
    sqlx::query!(
        "update contacts
        set phone = coalesce(phone, $3),
            provider_user_id = coalesce($4, provider_user_id),
            name = coalesce(name, $5),
            last_inbound_at = greatest(last_inbound_at, $6),
            opted_out_at = case
                when wish_at > $10 or (wish_at = $10 and not $7) then opted_out_at
                when $7 then $10
                when $8 then null
                else opted_out_at
            end,
            wish_at = case when $7 or $8 then greatest(wish_at, $10) else wish_at end,
            updated_at = $9
        where store_id = $1 and id = $2",
        store_id,
        id,
        sender.phone,
        sender.provider_user_id,
        sender.name,
        heard.wrote_at,
        stop,
        start,
        now,
        heard.said_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a person told us.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// When they wrote; none where they only changed a setting.
    pub wrote_at: Option<DateTime<Utc>>,
    /// What they wish.
    pub wish: Option<Wish>,
    /// When they said so: an older wish than the one that is known changes nothing.
    pub said_at: DateTime<Utc>,
}

/// The contact with this number, if there is one; locked.
///
/// # Errors
/// When the database fails.
pub async fn lock(
    db: impl PgExecutor<'_>,
    store_id: i64,
    phone: &str,
) -> sqlx::Result<Option<Contact>> {
    sqlx::query_as!(
        Contact,
        "select id, last_inbound_at, opted_out_at
        from contacts
        where store_id = $1 and phone = $2
        for update",
        store_id,
        phone,
    )
    .fetch_optional(db)
    .await
}

/// What the provider calls the person with this number.
///
/// # Errors
/// When the database fails.
pub async fn provider_user_id(
    db: impl PgExecutor<'_>,
    store_id: i64,
    phone: &str,
) -> sqlx::Result<Option<String>> {
    let found = sqlx::query_scalar!(
        "select provider_user_id from contacts where store_id = $1 and phone = $2",
        store_id,
        phone,
    )
    .fetch_optional(db)
    .await?;
    Ok(found.flatten())
}

/// Deletes a contact.
///
/// # Errors
/// When the database fails.
pub async fn delete(db: impl PgExecutor<'_>, store_id: i64, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from contacts where store_id = $1 and id = $2",
        store_id,
        id,
    )
    .execute(db)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_word_alone_is_a_wish() {
        for text in [
            "STOP",
            " stop ",
            "Stop.",
            "stopall",
            "Unsubscribe!",
            "OPT OUT",
        ] {
            assert_eq!(Wish::of(text), Some(Wish::Stop), "{text}");
        }
        for text in ["start", "UNSTOP"] {
            assert_eq!(Wish::of(text), Some(Wish::Start), "{text}");
        }
        for text in [
            "",
            "stop it",
            "please stop",
            "cancel",
            "end",
            "non stop",
            "no",
        ] {
            assert_eq!(Wish::of(text), None, "{text}");
        }
    }

    #[test]
    fn the_window_is_open_for_a_day() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).expect("in range");
        let contact = |ago: TimeDelta| Contact {
            id: Uuid::nil(),
            last_inbound_at: Some(now - ago),
            opted_out_at: None,
        };
        assert!(contact(TimeDelta::zero()).is_within_service_window(now));
        let almost = SERVICE_WINDOW - TimeDelta::microseconds(1);
        assert!(contact(almost).is_within_service_window(now));
        assert!(!contact(SERVICE_WINDOW).is_within_service_window(now));
    }
}
