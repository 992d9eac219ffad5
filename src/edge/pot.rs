//! What all clients together may hold of something: bytes of bodies, bytes of answers, streams.
//!
//! ```text
//!  ├──────────────── large portions ───────────────┤── kept for small ones ──┤
//!  ├── one store: at most half ──┤
//! ```
//!
//! What is really held counts, from when it arrives until it is handed on. Portions that have grown
//! large leave a part to small ones, so that documents that are still arriving keep out neither
//! single writes nor the provider's events; and no store can take more than its share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::Notify;

use crate::error::Error;

/// A portion of more bytes is a large one.
pub const SMALL_BYTES: usize = 64 * 1024;

/// On whose account a portion is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Nobody who is known: it has no share of its own.
    Nobody,
    /// A team whose store is not known yet.
    Team(i64),
    /// A store.
    Store(i64),
}

impl Holder {
    /// A number for each.
    #[must_use]
    pub fn key(self) -> i64 {
        match self {
            Self::Nobody => 0,
            Self::Team(team_id) => -team_id,
            Self::Store(store_id) => store_id,
        }
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    all: usize,
    /// The most of one holder.
    of_one: usize,
    /// What large portions may take together.
    large: usize,
}

/// Something that is bounded for a process. Clones share it.
#[derive(Clone)]
pub struct Pot(Arc<Shared>);

struct Shared {
    bounds: Bounds,
    held: Mutex<Held>,
    /// Told when something comes back.
    freed: Notify,
}

#[derive(Default)]
struct Held {
    all: usize,
    large: usize,
    holders: HashMap<Holder, usize>,
}

impl Pot {
    /// So many bytes: half of them for one holder at the most, a quarter kept for small portions.
    #[must_use]
    pub fn of_bytes(most: usize) -> Self {
        Self::of(Bounds {
            all: most,
            of_one: most / 2,
            large: most - most / 4,
        })
    }

    /// So many of something, and of one holder.
    #[must_use]
    pub fn of_number(most: usize, of_one: usize) -> Self {
        Self::of(Bounds {
            all: most,
            of_one,
            large: most,
        })
    }

    fn of(bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            bounds,
            held: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// A portion.
    ///
    /// # Errors
    /// `Overloaded` when there is not as much left, for this holder or at all.
    pub fn take(&self, holder: Holder, units: usize) -> Result<Portion, Error> {
        let mut portion = Portion {
            pot: self.clone(),
            holder,
            units: 0,
            is_large: false,
        };
        portion.grow(units)?;
        Ok(portion)
    }

    /// How much one holder could take now, in large portions.
    #[must_use]
    pub fn room(&self, holder: Holder) -> usize {
        let bounds = self.0.bounds;
        let held = self.held();
        let of_large = bounds.large.saturating_sub(held.large);
        let of_all = bounds.all.saturating_sub(held.all);
        let of_holder = match holder {
            Holder::Nobody => bounds.all,
            holder => bounds.of_one.saturating_sub(held.of(holder)),
        };
        of_large.min(of_all).min(of_holder)
    }

    /// What nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.bounds.all - self.held().all
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Numbers are whole at any time.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn of(&self, holder: Holder) -> usize {
        self.holders.get(&holder).copied().unwrap_or(0)
    }

    fn give_back(&mut self, portion: &Portion) {
        self.all -= portion.units;
        if portion.is_large {
            self.large -= portion.units;
        }
        if let Some(of_holder) = self.holders.get_mut(&portion.holder) {
            *of_holder -= portion.units;
            if *of_holder == 0 {
                self.holders.remove(&portion.holder);
            }
        }
    }
}

/// A part of a pot; it goes back when it is dropped.
pub struct Portion {
    pot: Pot,
    holder: Holder,
    units: usize,
    /// It was too large at some time for what is kept for small ones.
    is_large: bool,
}

impl Portion {
    /// How much it is.
    #[must_use]
    pub fn units(&self) -> usize {
        self.units
    }

    /// Takes more.
    ///
    /// # Errors
    /// `Overloaded` when there is not as much left; it is then as large as before.
    pub fn grow(&mut self, more: usize) -> Result<(), Error> {
        let bounds = self.pot.0.bounds;
        let is_large = self.is_large || self.units + more > SMALL_BYTES;
        let mut held = self.pot.held();
        let of_holder = held.of(self.holder) + more;
        let newly_large = match (is_large, self.is_large) {
            (false, _) => 0,
            (true, false) => self.units + more,
            (true, true) => more,
        };
        let fits = held.all + more <= bounds.all
            && (newly_large == 0 || held.large + newly_large <= bounds.large)
            && (self.holder == Holder::Nobody || of_holder <= bounds.of_one);
        if !fits {
            return Err(Error::Overloaded);
        }
        held.all += more;
        held.large += newly_large;
        if of_holder > 0 && self.holder != Holder::Nobody {
            held.holders.insert(self.holder, of_holder);
        }
        drop(held);
        self.units += more;
        self.is_large = is_large;
        Ok(())
    }

    /// Takes more, waiting for it if need be: for streams, which can let their client wait. Who waits
    /// may hold something that others wait for, so it ends.
    ///
    /// # Errors
    /// `Overloaded` when there is not as much left all the time.
    pub async fn grow_patiently(&mut self, more: usize, patience: Duration) -> Result<(), Error> {
        let pot = self.pot.clone();
        let growing = async {
            loop {
                let mut freed = std::pin::pin!(pot.0.freed.notified());
                // Listened for from before the try, so that nothing that comes back is missed.
                freed.as_mut().enable();
                if self.grow(more).is_ok() {
                    return;
                }
                freed.await;
            }
        };
        let grown = tokio::time::timeout(patience, growing).await;
        grown.map_err(|_| Error::Overloaded)
    }

    /// Cuts off a part, which goes back by itself.
    #[must_use]
    pub fn split(&mut self, units: usize) -> Self {
        let units = units.min(self.units);
        self.units -= units;
        Self {
            pot: self.pot.clone(),
            units,
            ..*self
        }
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        if self.units == 0 {
            return;
        }
        let pot = self.pot.clone();
        pot.held().give_back(self);
        pot.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;
    const ONE: Holder = Holder::Store(1);
    const OTHER: Holder = Holder::Store(2);

    fn is_refused(taken: Result<Portion, Error>) -> bool {
        matches!(taken, Err(Error::Overloaded))
    }

    #[test]
    fn no_store_takes_more_than_half_and_all_of_it_comes_back() {
        let pot = Pot::of_bytes(1_000);
        let mut held = pot.take(ONE, 400).expect("400 of 500");
        held.grow(100).expect("the rest of its half");
        assert!(is_refused(pot.take(ONE, 1)));
        assert!(held.grow(1).is_err());
        assert_eq!(held.units(), 500, "as before");
        let other = pot.take(OTHER, 500).expect("the other half");
        assert!(is_refused(pot.take(Holder::Nobody, 1)));
        let part = held.split(200);
        drop(held);
        assert_eq!(pot.free(), 300);
        pot.take(ONE, 300).expect("what is free");
        drop((part, other));
        assert_eq!(pot.free(), 1_000);
        assert_eq!(pot.room(ONE), 500);
    }

    #[test]
    fn large_portions_leave_a_part_to_small_ones() {
        let pot = Pot::of_bytes(1_000 * KIB);
        let mut large = pot.take(ONE, 64 * KIB).expect("small so far");
        let others = pot.take(OTHER, 500 * KIB).expect("its half");
        large.grow(186 * KIB).expect("750 KiB for large ones");
        assert!(large.grow(1).is_err());
        assert_eq!(pot.room(ONE), 0);
        let small: Vec<_> = (0..3)
            .map(|_| pot.take(ONE, 64 * KIB).expect("kept for small ones"))
            .collect();
        assert!(is_refused(pot.take(ONE, 64 * KIB + 1)), "that is large");
        drop((large, others, small));
        assert_eq!(pot.free(), 1_000 * KIB);
        pot.take(OTHER, 500 * KIB).expect("its half again");
    }

    #[test]
    fn a_number_is_bounded_for_all_and_for_one() {
        let streams = Pot::of_number(3, 2);
        let two = [streams.take(ONE, 1), streams.take(ONE, 1)].map(|one| one.expect("two"));
        assert!(is_refused(streams.take(ONE, 1)));
        let _other = streams.take(OTHER, 1).expect("the third");
        assert!(is_refused(streams.take(OTHER, 1)));
        drop(two);
        streams.take(OTHER, 1).expect("it has a second one now");
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_something_comes_back_and_not_for_ever() {
        let pot = Pot::of_bytes(1_000);
        let held = pot.take(ONE, 500).expect("its half");
        let waiting = tokio::spawn({
            let pot = pot.clone();
            async move {
                let mut portion = pot.take(ONE, 0).expect("nothing");
                let patience = Duration::from_secs(60);
                portion
                    .grow_patiently(300, patience)
                    .await
                    .map(|()| portion)
            }
        });
        tokio::task::yield_now().await;
        drop(held);
        let mut portion = waiting.await.expect("no panic").expect("it came back");
        let soon = Duration::from_millis(20);
        assert!(portion.grow_patiently(300, soon).await.is_err());
        assert_eq!(portion.units(), 300);
    }
}
