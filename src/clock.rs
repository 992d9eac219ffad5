//! Time and fresh ids. Nothing else in the crate asks the system for either, so that a test can
//! move the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use uuid::Uuid;

/// Where the time comes from: the system, or a test's hand.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Microseconds that a test added to the system's time.
    shift_us: Arc<AtomicI64>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Now, in UTC, cut to the microseconds that Postgres keeps.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that asks the system"
    )]
    pub fn now(&self) -> DateTime<Utc> {
        let shift = TimeDelta::microseconds(self.shift_us.load(Ordering::Relaxed));
        let now = Utc::now() + shift;
        now.duration_trunc(TimeDelta::microseconds(1))
            .unwrap_or(now)
    }

    /// Moves this clock, and every clone of it, forward.
    pub fn advance(&self, by: TimeDelta) {
        self.shift_us
            .fetch_add(by.num_microseconds().unwrap_or(0), Ordering::Relaxed);
    }

    /// A new UUIDv7: ordered by the time at which it was made, within this process.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that makes ids"
    )]
    pub fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
