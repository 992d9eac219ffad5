//! Bounded admission of database work: what can't be done soon is refused early, before its body
//! is read, and the refusal is answered late.
//!
//! A refusal costs a tenth of a write; clients that get it at once and try again at once take the
//! whole processor from the requests that could be served.
//!
//! Stores take turns: of those who wait, one of each store goes before the second of any. A store
//! may take half of the places to wait, and all slots but one, so that another one finds a slot that
//! does not have to be waited for until a large page is read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::oneshot;

use super::pot::Holder;
use crate::error::Error;
use crate::turns::{Turns, Verdict};

/// The longest wait for a slot.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// How late a refusal is answered, in milliseconds; at random, so that the clients don't come back
/// together.
const HELD_BACK_MS: std::ops::RangeInclusive<u64> = 200..=500;

/// Lets a bounded number of requests work at a time and a bounded number wait.
#[derive(Clone)]
pub struct Gate {
    queue: Arc<Mutex<Queue>>,
    max_waiting: usize,
    max_wait: Duration,
}

struct Queue {
    free: usize,
    /// The most slots of one holder.
    of_one: usize,
    used: HashMap<Holder, usize>,
    waiting: Turns<Waiter>,
}

/// Somebody who waits; they may be gone by now.
struct Waiter {
    holder: Holder,
    grant: oneshot::Sender<Permit>,
}

impl Queue {
    fn has_room_for(&self, holder: Holder) -> bool {
        let used = self.used.get(&holder).copied().unwrap_or(0);
        self.free > 0 && used < self.of_one
    }

    fn take(&mut self, holder: Holder) {
        self.free -= 1;
        *self.used.entry(holder).or_default() += 1;
    }

    fn give_back(&mut self, holder: Holder) {
        self.free += 1;
        if let Some(used) = self.used.get_mut(&holder) {
            *used -= 1;
            if *used == 0 {
                self.used.remove(&holder);
            }
        }
    }

    /// The next one who may have a slot, with the slot taken.
    fn next(&mut self) -> Option<Waiter> {
        if self.free == 0 {
            return None;
        }
        let (used, of_one) = (&self.used, self.of_one);
        let mut is_found = false;
        let next = self.waiting.select(|waiter| {
            let has_room = used.get(&waiter.holder).copied().unwrap_or(0) < of_one;
            match (is_found, has_room) {
                (true, _) => Verdict::Enough,
                (false, false) => Verdict::Hold,
                (false, true) => {
                    is_found = true;
                    Verdict::Take
                }
            }
        });
        let next = next.into_iter().next()?;
        self.take(next.holder);
        Some(next)
    }
}

/// The right to work, until it is dropped.
pub struct Permit {
    gate: Gate,
    holder: Holder,
    /// The slot was given back already.
    is_void: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_void {
            return;
        }
        let mut queue = self.gate.queue();
        queue.give_back(self.holder);
        while let Some(waiter) = queue.next() {
            drop(queue);
            let granted = waiter.grant.send(self.gate.permit(waiter.holder));
            queue = self.gate.queue();
            let Err(mut unwanted) = granted else {
                // There may be more free slots than this one, for a store that could not have this one.
                continue;
            };
            // Who waited is gone: the slot goes to the next one from here.
            unwanted.is_void = true;
            queue.give_back(unwanted.holder);
        }
    }
}

impl Gate {
    /// A gate for `slots` requests at a time and `max_waiting` behind them.
    #[must_use]
    pub fn new(slots: usize, max_waiting: usize) -> Self {
        let of_one = if slots > 2 { slots - 1 } else { slots };
        Self {
            queue: Arc::new(Mutex::new(Queue {
                free: slots,
                of_one,
                used: HashMap::new(),
                waiting: Turns::default(),
            })),
            max_waiting,
            max_wait: MAX_WAIT,
        }
    }

    /// Whether there is any hope to enter; asked before a body is read.
    ///
    /// # Errors
    /// `Overloaded` when no slot is free and as many wait as may.
    pub fn check(&self, holder: Holder) -> Result<(), Error> {
        let queue = self.queue();
        if queue.has_room_for(holder) || self.may_wait(&queue, holder) {
            Ok(())
        } else {
            Err(Error::Overloaded)
        }
    }

    /// Waits for a slot, in turns with other stores, and among those of one store in order of arrival.
    ///
    /// # Errors
    /// `Overloaded` when as many wait as may, or after 5 s.
    pub async fn enter(&self, holder: Holder) -> Result<Permit, Error> {
        self.wait(holder, self.max_wait, true).await
    }

    /// Waits for a slot for so long, however many others wait: for streams, which hold their client
    /// back meanwhile and are bounded elsewhere.
    ///
    /// # Errors
    /// `Overloaded` when the time is over.
    pub async fn enter_patiently(
        &self,
        holder: Holder,
        patience: Duration,
    ) -> Result<Permit, Error> {
        self.wait(holder, patience, false).await
    }

    async fn wait(
        &self,
        holder: Holder,
        patience: Duration,
        is_bounded: bool,
    ) -> Result<Permit, Error> {
        let granted = {
            let mut queue = self.queue();
            if queue.has_room_for(holder) {
                queue.take(holder);
                return Ok(self.permit(holder));
            }
            if is_bounded && !self.may_wait(&queue, holder) {
                // Those who have gone away take no place.
                drop(queue.waiting.extract(|waiter| waiter.grant.is_closed()));
                if !self.may_wait(&queue, holder) {
                    return Err(Error::Overloaded);
                }
            }
            let (grant, granted) = oneshot::channel();
            queue.waiting.push(holder.key(), Waiter { holder, grant });
            granted
        };
        match tokio::time::timeout(patience, granted).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::Overloaded),
        }
    }

    fn permit(&self, holder: Holder) -> Permit {
        Permit {
            gate: self.clone(),
            holder,
            is_void: false,
        }
    }

    fn may_wait(&self, queue: &Queue, holder: Holder) -> bool {
        queue.waiting.len() < self.max_waiting
            && queue.waiting.len_of(holder.key()) < self.max_waiting.div_ceil(2)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change is whole before anything can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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

    const ONE: Holder = Holder::Store(1);
    const OTHER: Holder = Holder::Store(2);
    const THIRD: Holder = Holder::Store(3);

    type Waiting = tokio::task::JoinHandle<Result<Permit, Error>>;

    /// Somebody who waits, once they do.
    async fn waits(gate: &Gate, holder: Holder) -> Waiting {
        let before = gate.queue().waiting.len();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(holder).await }
        });
        while gate.queue().waiting.len() == before {
            tokio::task::yield_now().await;
        }
        waiting
    }

    async fn entered(waiting: Waiting) -> Permit {
        waiting.await.expect("no panic").expect("a slot")
    }

    fn is_refused<T>(result: &Result<T, Error>) -> bool {
        matches!(result, Err(Error::Overloaded))
    }

    #[tokio::test]
    async fn one_works_one_waits_and_the_third_is_refused() {
        let gate = Gate::new(1, 1);
        let working = gate.enter(ONE).await.expect("a free slot");
        assert!(gate.check(ONE).is_ok());
        let waiting = waits(&gate, ONE).await;
        assert!(is_refused(&gate.check(ONE)));
        assert!(is_refused(&gate.enter(ONE).await));
        drop(working);
        drop(entered(waiting).await);
        assert!(gate.check(ONE).is_ok());
        assert_eq!(gate.queue().free, 1);
    }

    #[tokio::test]
    async fn stores_take_turns_however_many_of_one_wait() {
        let gate = Gate::new(1, 10);
        let mut working = gate.enter(ONE).await.expect("a free slot");
        let first = waits(&gate, ONE).await;
        let second = waits(&gate, ONE).await;
        let third = waits(&gate, ONE).await;
        let other = waits(&gate, OTHER).await;
        for next in [first, other, second, third] {
            drop(working);
            working = entered(next).await;
        }
        drop(working);
        assert_eq!(gate.queue().free, 1);
    }

    #[tokio::test]
    async fn a_store_leaves_a_slot_and_half_of_the_places_to_others() {
        let gate = Gate::new(3, 4);
        let held = [gate.enter(ONE).await, gate.enter(ONE).await];
        let waiting = [waits(&gate, ONE).await, waits(&gate, ONE).await];
        assert!(is_refused(&gate.check(ONE)));
        assert!(is_refused(&gate.enter(ONE).await), "half of the places");
        let slot = gate.enter(OTHER).await.expect("one is left");
        let place = waits(&gate, THIRD).await;
        drop(held);
        for one in waiting {
            drop(entered(one).await);
        }
        drop((entered(place).await, slot));
        assert_eq!(gate.queue().free, 3);
        assert!(gate.queue().used.is_empty());
    }

    #[tokio::test]
    async fn a_slot_is_not_lost_to_somebody_who_went_away() {
        let gate = Gate::new(1, 4);
        let working = gate.enter(ONE).await.expect("a free slot");
        let gone = [waits(&gate, OTHER).await, waits(&gate, THIRD).await];
        let stays = waits(&gate, ONE).await;
        for one in gone {
            one.abort();
            assert!(one.await.is_err_and(|error| error.is_cancelled()));
        }
        drop(working);
        drop(entered(stays).await);
        assert_eq!(gate.queue().free, 1);
        assert!(gate.queue().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_wait_has_an_end() {
        let gate = Gate {
            max_wait: Duration::from_millis(20),
            ..Gate::new(1, 1)
        };
        let working = gate.enter(ONE).await.expect("a free slot");
        assert!(is_refused(&gate.enter(ONE).await));
        assert!(
            is_refused(&gate.enter(ONE).await),
            "its place is free again"
        );
        drop(working);
        drop(gate.enter(ONE).await.expect("the slot"));
    }
}
