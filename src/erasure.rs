//! Erasure of a person: each module that keeps something about people registers an eraser, and all
//! of them run in one transaction.

use std::future::Future;
use std::pin::Pin;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::clock::Clock;
use crate::database::Connection;

/// Whose traces go. The phone and the customer are locked while the erasers run.
#[derive(Clone, Debug)]
pub struct Person {
    /// In which store.
    pub store_id: i64,
    /// The record that becomes a tombstone; none for somebody who is known by their phone alone, for
    /// example because they got a message.
    pub customer_id: Option<Uuid>,
    /// Their phone, as E.164.
    pub phone: String,
    /// The id of the event that tells of it.
    pub event_id: Uuid,
    /// When.
    pub now: DateTime<Utc>,
    /// Where more ids come from.
    pub clock: Clock,
}

/// Erases what one module keeps about a person.
pub type Eraser = for<'c> fn(&'c mut Connection, &'c Person) -> Erasing<'c>;

/// An eraser at work.
pub type Erasing<'c> = Pin<Box<dyn Future<Output = sqlx::Result<()>> + Send + 'c>>;

/// Runs all erasers in the caller's transaction.
///
/// # Errors
/// When the database fails; the caller rolls back.
pub async fn run(
    connection: &mut Connection,
    person: &Person,
    erasers: &[Eraser],
) -> sqlx::Result<()> {
    for eraser in erasers {
        eraser(connection, person).await?;
    }
    Ok(())
}
