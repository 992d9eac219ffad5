//! Connections that go from one batch to the next.
//!
//! A pool asks a connection that comes back whether it is well, and meanwhile gives out another one.
//! Batches that follow each other closely would use two or more in turn: each with its own process
//! of Postgres, its own caches, and a question that nobody waits for but the processor.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use crate::state::TRUSTED_IDLE;

/// How long a connection may go on before the pool sees it again, which renews those that are old.
const LONGEST: Duration = Duration::from_secs(10);

/// The connections of a pool that were used last and are not back in it.
pub struct AtHand {
    pool: PgPool,
    rested: Mutex<Vec<(Held, Instant)>>,
}

/// A connection, from at hand or from the pool; dropped, it goes back to the pool.
pub struct Held {
    /// The connection.
    pub connection: PoolConnection<Postgres>,
    /// When the pool gave it out.
    since: Instant,
}

impl Held {
    /// A connection of a pool.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn of(pool: &PgPool) -> sqlx::Result<Self> {
        let connection = pool.acquire().await?;
        Ok(Self {
            connection,
            since: Instant::now(),
        })
    }
}

impl AtHand {
    /// None so far.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            rested: Mutex::default(),
        }
    }

    /// The connection that was used last, else one of the pool.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn take(&self) -> sqlx::Result<Held> {
        let last = self.rested().pop();
        if let Some((held, rests_since)) = last {
            if rests_since.elapsed() < TRUSTED_IDLE {
                return Ok(held);
            }
            // It goes back first, as the pool may have no other, and those that rest for even longer.
            drop(held);
            self.give_back();
        }
        Held::of(&self.pool).await
    }

    /// Keeps a connection for the next batch. Nothing may be open on it.
    pub fn keep(&self, held: Held) {
        if held.since.elapsed() < LONGEST {
            self.rested().push((held, Instant::now()));
        }
    }

    /// Gives all of them back to the pool.
    pub fn give_back(&self) {
        let rested = std::mem::take(&mut *self.rested());
        drop(rested);
    }

    fn rested(&self) -> MutexGuard<'_, Vec<(Held, Instant)>> {
        // A list is whole at any time.
        self.rested.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
