//! The lease of a pump, kept beside its work: a slow database or bodies without room don't lose it.
//!
//! Calls are begun only while nobody else can have the lease before they have ended. So whoever has
//! it next never sees a call of its predecessor go out after its own.

use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::outbox::{self, Leased};
use crate::state::State;

/// How long it lasts from each extension.
const LASTS: TimeDelta = TimeDelta::seconds(60);
/// How often it is extended.
const EXTEND_EVERY: TimeDelta = TimeDelta::seconds(10);
/// How often is looked whether it is time for that.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A call takes no longer.
const CALL: TimeDelta = TimeDelta::seconds(15);

/// The lease of an export's row.
pub struct Lease {
    state: State,
    store_id: i64,
    id: Uuid,
    lease_id: Uuid,
    /// Until when it is ours for sure, in microseconds.
    until_us: AtomicI64,
    /// No more calls are begun under it.
    over: CancellationToken,
}

impl Lease {
    /// The lease of a row, not yet extended: no calls can be begun.
    #[must_use]
    pub fn of(state: &State, row: &Leased) -> Self {
        Self {
            state: state.clone(),
            store_id: row.store_id,
            id: row.id,
            lease_id: row.lease_id,
            until_us: AtomicI64::new(0),
            over: state.shutdown.child_token(),
        }
    }

    /// Whether a call that begins now has ended before anybody else can have the lease.
    #[must_use]
    pub fn lasts(&self) -> bool {
        !self.over.is_cancelled() && self.until() > self.state.clock.now() + CALL
    }

    /// Comes when no more calls are begun.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// No more calls are begun.
    pub fn end(&self) {
        self.over.cancel();
    }

    fn until(&self) -> DateTime<Utc> {
        let until_us = self.until_us.load(Ordering::Acquire);
        DateTime::from_timestamp_micros(until_us).unwrap_or_default()
    }

    /// Extends the lease; says whether it is still ours.
    ///
    /// # Errors
    /// When the database fails: then it lasts as long as it did.
    pub async fn extend(&self) -> sqlx::Result<bool> {
        let until = self.state.clock.now() + LASTS;
        let pool = &self.state.pool;
        let is_ours = outbox::extend(pool, self.store_id, self.id, self.lease_id, until).await?;
        if is_ours {
            let until_us = until.timestamp_micros();
            self.until_us.fetch_max(until_us, Ordering::AcqRel);
        } else {
            self.end();
        }
        Ok(is_ours)
    }

    /// Extends the lease again and again.
    pub async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let is_fresh = self.until() > self.state.clock.now() + (LASTS - EXTEND_EVERY);
            if is_fresh || self.over.is_cancelled() {
                continue;
            }
            if let Err(error) = self.extend().await {
                tracing::warn!(%error, "the lease of an export can't be extended yet");
            }
        }
    }
}
