//! Bounded admission of database work: what can't be done soon is refused early, before its body
//! is read, and the refusal is answered late.
//!
//! A refusal costs a tenth of a write; clients that get it at once and try again at once take the
//! whole processor from the requests that could be served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// The longest wait for a slot.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// How late a refusal is answered, in milliseconds; at random, so that the clients don't come back
/// together.
const HELD_BACK_MS: std::ops::RangeInclusive<u64> = 200..=500;

/// Lets a bounded number of requests work at a time and a bounded number wait.
#[derive(Clone)]
pub struct Gate {
    slots: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
    max_wait: Duration,
}

/// The right to work, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _slot: OwnedSemaphorePermit,
}

impl Gate {
    /// A gate for `slots` requests at a time and `max_waiting` behind them.
    #[must_use]
    pub fn new(slots: usize, max_waiting: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(slots)),
            waiting: Arc::new(AtomicUsize::new(0)),
            max_waiting,
            max_wait: MAX_WAIT,
        }
    }

    /// Whether there is any hope to enter; asked before a body is read.
    ///
    /// # Errors
    /// `Overloaded` when no slot is free and as many wait as may.
    pub fn check(&self) -> Result<(), Error> {
        let full = self.waiting.load(Ordering::Relaxed) >= self.max_waiting;
        if full && self.slots.available_permits() == 0 {
            Err(Error::Overloaded)
        } else {
            Ok(())
        }
    }

    /// Waits for a slot, in order of arrival.
    ///
    /// # Errors
    /// `Overloaded` when as many wait as may, or after 5 s.
    pub async fn enter(&self) -> Result<Permit, Error> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(Permit { _slot: slot });
        }
        let _place = self.queue()?;
        let slot = Arc::clone(&self.slots).acquire_owned();
        match tokio::time::timeout(self.max_wait, slot).await {
            Ok(Ok(slot)) => Ok(Permit { _slot: slot }),
            _ => Err(Error::Overloaded),
        }
    }

    /// Waits for a slot for so long, however many others wait: for streams, which hold their client
    /// back meanwhile and are bounded elsewhere.
    ///
    /// # Errors
    /// `Overloaded` when the time is over.
    pub async fn enter_patiently(&self, patience: Duration) -> Result<Permit, Error> {
        let slot = Arc::clone(&self.slots).acquire_owned();
        match tokio::time::timeout(patience, slot).await {
            Ok(Ok(slot)) => Ok(Permit { _slot: slot }),
            _ => Err(Error::Overloaded),
        }
    }

    /// A place among those who wait.
    fn queue(&self) -> Result<Place<'_>, Error> {
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            return Err(Error::Overloaded);
        }
        Ok(place)
    }
}

/// One waiting request; counted from before it is checked, so that a race can't let two in.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits 200–500 ms, at random. How many wait here is bounded by the cap on connections.
pub async fn hold_back() {
    let ms = rand::random_range(HELD_BACK_MS);
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_works_one_waits_and_the_third_is_refused() {
        let gate = Gate::new(1, 1);
        let working = gate.enter().await.expect("a free slot");
        assert!(gate.check().is_ok());
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await }
        });
        while gate.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(gate.check(), Err(Error::Overloaded)));
        assert!(matches!(gate.enter().await, Err(Error::Overloaded)));
        drop(working);
        drop(waiting.await.expect("no panic").expect("the freed slot"));
        assert!(gate.check().is_ok());
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_wait_has_an_end() {
        let gate = Gate {
            max_wait: Duration::from_millis(20),
            ..Gate::new(1, 1)
        };
        let _working = gate.enter().await.expect("a free slot");
        assert!(matches!(gate.enter().await, Err(Error::Overloaded)));
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }
}
