//! A pot that stores share: places, bytes, whatever there is so much of.
//!
//! A store may hold as much as it leaves free: alone it gets half of the pot, beside another one a
//! third, and so on. So whoever holds nothing yet finds something, however much the others want
//! (Choudhury and Hahne, "Dynamic queue length thresholds", 1998, with a factor of 1). Where
//! everything is taken, what comes back goes to the stores in turn ([`Turns`]).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use tokio::sync::{Notify, oneshot};

use crate::turns::{Turns, Verdict};

/// A pot. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Pot(Arc<Inner>);

impl fmt::Debug for Pot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pot").field(&self.0.size).finish()
    }
}

struct Inner {
    size: usize,
    level: Mutex<Level>,
    /// Told whenever something comes back; the one who is told is the pot's worker.
    returned: Notify,
}

struct Level {
    free: usize,
    /// By store; nobody who holds nothing.
    held: HashMap<i64, usize>,
    waiting: Turns<Waiter>,
    /// The first one who waits and may have it needs more than is free: nobody passes by.
    is_short: bool,
}

struct Waiter {
    store_id: i64,
    wanted: usize,
    give: oneshot::Sender<Share>,
}

/// What a store holds of a pot; it goes back when this is dropped.
#[derive(Debug)]
pub struct Share {
    pot: Pot,
    store_id: i64,
    amount: usize,
}

impl Pot {
    /// A pot of so much.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let level = Level {
            free: size,
            held: HashMap::new(),
            waiting: Turns::default(),
            is_short: false,
        };
        Self(Arc::new(Inner {
            size,
            level: Mutex::new(level),
            returned: Notify::new(),
        }))
    }

    fn level(&self) -> MutexGuard<'_, Level> {
        self.0.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much, if the store may have it now. More than there is in all counts as all of it.
    #[must_use]
    pub fn take(&self, store_id: i64, wanted: usize) -> Option<Share> {
        let wanted = wanted.min(self.0.size);
        let mut level = self.level();
        let may_pass = !level.is_short && level.waiting.len_of(store_id) == 0;
        let is_taken = may_pass && level.may_have(store_id, wanted) && level.take(store_id, wanted);
        drop(level);
        is_taken.then(|| self.share(store_id, wanted))
    }

    /// As much of it as the store may have now. A store that holds something gets nothing rather than
    /// less than this lot.
    #[must_use]
    pub fn take_up_to(&self, store_id: i64, wanted: usize, lot: usize) -> Option<Share> {
        let mut level = self.level();
        let amount = wanted.min(level.room_of(store_id));
        let least = if level.held_by(store_id) == 0 {
            1
        } else {
            lot.min(wanted).max(1)
        };
        let is_taken = amount >= least && !level.is_short && level.take(store_id, amount);
        drop(level);
        is_taken.then(|| self.share(store_id, amount))
    }

    /// So much, once it is the store's turn.
    pub async fn wait(&self, store_id: i64, wanted: usize) -> Share {
        let wanted = wanted.min(self.0.size);
        loop {
            if let Some(share) = self.take(store_id, wanted) {
                return share;
            }
            let (give, given) = oneshot::channel();
            let waiter = Waiter {
                store_id,
                wanted,
                give,
            };
            self.level().waiting.push(store_id, waiter);
            // What came back since it was looked at.
            self.hand_out();
            if let Ok(share) = given.await {
                return share;
            }
        }
    }

    /// Waits until something comes back, or has since the last time. For one waiter alone.
    pub async fn returned(&self) {
        self.0.returned.notified().await;
    }

    /// Waits until everything has come back. For one waiter alone.
    pub async fn filled(&self) {
        loop {
            let returned = self.0.returned.notified();
            if self.level().held.is_empty() {
                return;
            }
            returned.await;
        }
    }

    fn share(&self, store_id: i64, amount: usize) -> Share {
        Share {
            pot: self.clone(),
            store_id,
            amount,
        }
    }

    /// Gives what is free to those who wait.
    fn hand_out(&self) {
        let served = self.level().serve();
        for waiter in served {
            // Whoever waits no more gives it back by that.
            let _ = waiter.give.send(self.share(waiter.store_id, waiter.wanted));
        }
    }

    fn give_back(&self, store_id: i64, amount: usize) {
        if amount > 0 {
            self.level().give_back(store_id, amount);
            self.0.returned.notify_one();
            self.hand_out();
        }
    }
}

impl Level {
    fn held_by(&self, store_id: i64) -> usize {
        self.held.get(&store_id).copied().unwrap_or(0)
    }

    /// Whether a store that takes so much leaves as much. Who holds nothing may have whatever is free,
    /// or large things would never fit.
    fn may_have(&self, store_id: i64, wanted: usize) -> bool {
        let held = self.held_by(store_id);
        held == 0 || held + 2 * wanted <= self.free
    }

    /// How much a store may have, in parts of one.
    fn room_of(&self, store_id: i64) -> usize {
        let held = self.held_by(store_id);
        let least = usize::from(held == 0).min(self.free);
        (self.free.saturating_sub(held) / 2).max(least)
    }

    /// Takes so much if it is there.
    fn take(&mut self, store_id: i64, amount: usize) -> bool {
        let Some(free) = self.free.checked_sub(amount) else {
            return false;
        };
        self.free = free;
        *self.held.entry(store_id).or_default() += amount;
        true
    }

    fn give_back(&mut self, store_id: i64, amount: usize) {
        self.free += amount;
        if let Some(held) = self.held.get_mut(&store_id) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                self.held.remove(&store_id);
            }
        }
    }

    /// Takes for those who wait, store by store.
    fn serve(&mut self) -> Vec<Waiter> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.extract(|waiter| waiter.give.is_closed());
        self.is_short = false;
        let served = waiting.select(|waiter| {
            if !self.may_have(waiter.store_id, waiter.wanted) {
                return Verdict::Pass;
            }
            if self.take(waiter.store_id, waiter.wanted) {
                return Verdict::Take;
            }
            self.is_short = true;
            Verdict::Enough
        });
        self.waiting = waiting;
        served
    }
}

impl Share {
    /// How much it is.
    #[must_use]
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// A part of it, if it is that much.
    #[must_use]
    pub fn split(&mut self, amount: usize) -> Option<Self> {
        self.amount = self.amount.checked_sub(amount)?;
        Some(self.pot.share(self.store_id, amount))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pot.give_back(self.store_id, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_store_holds_as_much_as_it_leaves() {
        let pot = Pot::new(12);
        let first: Vec<Share> = std::iter::from_fn(|| pot.take(1, 1)).collect();
        assert_eq!(first.len(), 6);
        let second: Vec<Share> = std::iter::from_fn(|| pot.take(2, 1)).collect();
        assert_eq!(second.len(), 3);
        assert!(pot.take(1, 1).is_none());
        // Three are free: each of them goes to somebody who holds nothing yet.
        let others: Vec<Share> = (3..9)
            .filter_map(|store_id| pot.take(store_id, 1))
            .collect();
        assert_eq!(others.len(), 3);
        drop((first, second, others));
        assert_eq!(pot.level().free, 12);
        assert!(pot.level().held.is_empty());
    }

    #[test]
    fn a_store_that_holds_something_gets_no_less_than_a_lot() {
        let pot = Pot::new(64);
        let mut first = pot.take_up_to(1, 20, 8).expect("free");
        assert_eq!(first.amount(), 20);
        let more = pot.take_up_to(1, 20, 8).expect("a lot");
        assert_eq!(more.amount(), 12);
        drop(first.split(10));
        assert!(pot.take_up_to(1, 20, 11).is_none());
        assert_eq!(pot.take_up_to(1, 2, 11).expect("all of it").amount(), 2);
        assert!(first.split(11).is_none());
        assert_eq!(first.amount(), 10);
        assert_eq!(pot.take_up_to(2, 100, 8).expect("half").amount(), 21);
    }

    #[test]
    fn what_comes_back_goes_to_the_stores_in_turn() {
        let pot = Pot::new(1);
        let mut place = pot.take(1, 1).expect("free");
        let mut waiting: Vec<_> = [1, 1, 1, 2, 2, 3]
            .into_iter()
            .map(|store_id| {
                let mut share = Box::pin(pot.wait(store_id, 1));
                assert!((&mut share).now_or_never().is_none());
                (store_id, share)
            })
            .collect();
        // Nobody passes by those who wait, and who waits no more is left out.
        drop(waiting.remove(1));
        let mut served = Vec::new();
        while !waiting.is_empty() {
            drop(place);
            let next = waiting
                .iter_mut()
                .enumerate()
                .find_map(|(at, (_, share))| share.now_or_never().map(|share| (at, share)));
            let (at, share) = next.expect("one is served");
            served.push(waiting.remove(at).0);
            place = share;
        }
        // Store 1 was passed by while it had the place.
        assert_eq!(served, [2, 1, 3, 2, 1]);
    }

    #[test]
    fn something_large_is_not_passed_by_until_it_fits() {
        let pot = Pot::new(10);
        let small = [1, 2, 3].map(|store_id| pot.take(store_id, 1).expect("free"));
        let mut large = Box::pin(pot.wait(4, 9));
        assert!((&mut large).now_or_never().is_none());
        assert!(pot.take(5, 1).is_none());
        let mut other = Box::pin(pot.wait(5, 1));
        assert!((&mut other).now_or_never().is_none());
        drop(small);
        assert_eq!((&mut large).now_or_never().expect("it fits").amount(), 9);
        assert_eq!((&mut other).now_or_never().expect("then this").amount(), 1);
        // More than there is means all of it.
        assert!(pot.take(6, 11).expect("free again").amount() == 10);
    }
}
