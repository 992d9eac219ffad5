//! How many single writes wait, and which store may let one more wait.
//!
//! As long as the queue is not full, anybody may fill it. When it is, a store that has its fair
//! share of it (all places, divided by the stores that wait) is refused, and one that has less is
//! let in, above the bound: by less than a share a store, so by no more than the bound once more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::error::Error;

/// Bytes of single writes that may wait.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// What stores that have less than their share may add to that.
const RESERVE_BYTES: usize = QUEUE_BYTES / 2;

/// All places of the queue.
pub(super) struct Places(Mutex<Taken>);

struct Taken {
    all: Count,
    stores: HashMap<i64, Count>,
    /// How many of all are held up.
    held_up: usize,
    crowd: Crowd,
    /// How many may wait, by what the crowd says now.
    most: usize,
}

/// Writes and their bytes.
#[derive(Clone, Copy, Default)]
struct Count {
    writes: usize,
    bytes: usize,
}

impl Places {
    pub fn new(most_batch: u32, most_waiting: u32) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Taken {
            all: Count::default(),
            stores: HashMap::new(),
            held_up: 0,
            crowd: Crowd::new(most_batch, most_waiting),
            most: most_waiting as usize,
        })))
    }

    /// Whether a store may have one more write wait; asked before its body is read.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full and the store has its share of it.
    pub fn check(&self, store_id: i64) -> Result<(), Error> {
        let has_room = self.taken().has_room(store_id, 1);
        has_room.then_some(()).ok_or(Error::Overloaded)
    }

    /// A place for a write of so many bytes.
    ///
    /// # Errors
    /// As for [`Self::check`].
    pub fn take(self: &Arc<Self>, store_id: i64, bytes: usize) -> Result<Place, Error> {
        let mut taken = self.taken();
        if !taken.has_room(store_id, bytes) {
            return Err(Error::Overloaded);
        }
        taken.add(store_id, bytes);
        drop(taken);
        Ok(self.place(store_id, bytes, false))
    }

    /// The place of a write that had one before, and is held up: it counts again.
    pub fn hold_up(self: &Arc<Self>, store_id: i64, bytes: usize) -> Place {
        let mut taken = self.taken();
        taken.add(store_id, bytes);
        taken.held_up += 1;
        drop(taken);
        self.place(store_id, bytes, true)
    }

    fn place(self: &Arc<Self>, store_id: i64, bytes: usize, is_held_up: bool) -> Place {
        Place {
            places: Arc::clone(self),
            store_id,
            bytes,
            is_held_up,
        }
    }

    /// Writes that wait for a batch to take them.
    pub fn waiting(&self) -> usize {
        let taken = self.taken();
        taken.all.writes - taken.held_up
    }

    /// Looks at how many wait, when a batch is about to be taken from them.
    pub fn look_at_the_crowd(&self) {
        let mut taken = self.taken();
        let waiting = taken.all.writes - taken.held_up;
        taken.most = taken.crowd.after(waiting, Instant::now());
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Counts are whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn has_room(&self, store_id: i64, bytes: usize) -> bool {
        let own = self.stores.get(&store_id).copied().unwrap_or_default();
        let stores = self.stores.len() + usize::from(own.writes == 0);
        let share = (self.most / stores).max(1);
        let is_below = own.writes < share && self.all.writes < 2 * self.most;
        let has_place = self.all.writes < self.most || is_below;

        // A lone write of any size is let in, and of a store that has no other one at least one.
        let is_small = own.writes == 0 || own.bytes + bytes <= QUEUE_BYTES / stores;
        let with_it = self.all.bytes + bytes;
        let has_bytes = self.all.writes == 0
            || with_it <= QUEUE_BYTES
            || (is_small && with_it <= QUEUE_BYTES + RESERVE_BYTES);
        has_place && has_bytes
    }

    fn add(&mut self, store_id: i64, bytes: usize) {
        for count in [&mut self.all, self.stores.entry(store_id).or_default()] {
            count.writes += 1;
            count.bytes += bytes;
        }
    }

    fn remove(&mut self, store_id: i64, bytes: usize) {
        let own = self.stores.entry(store_id).or_default();
        for count in [&mut self.all, own] {
            count.writes = count.writes.saturating_sub(1);
            count.bytes = count.bytes.saturating_sub(bytes);
        }
        if self
            .stores
            .get(&store_id)
            .is_some_and(|own| own.writes == 0)
        {
            self.stores.remove(&store_id);
        }
    }
}

/// One write in the count, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    store_id: i64,
    bytes: usize,
    is_held_up: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.remove(self.store_id, self.bytes);
        taken.held_up -= usize::from(self.is_held_up);
    }
}

/// How many single writes may wait. A burst that is worked off soon may fill the whole queue. Under
/// more load than can be written, a long queue only makes everybody wait: as much is written when
/// hardly more wait than the next batch takes.
struct Crowd {
    most: usize,
    /// Enough for batches that are worth it.
    enough: usize,
    is_short: bool,
    /// Since when it has been the other way round.
    since: Option<Instant>,
}

impl Crowd {
    /// For how long the queue must have been longer than enough, or much shorter.
    const LASTING: Duration = Duration::from_millis(100);
    /// Whatever the size of a batch, so many may wait.
    const ALWAYS: u32 = 128;

    fn new(most_batch: u32, most_waiting: u32) -> Self {
        let enough = (most_batch / 2).max(Self::ALWAYS).min(most_waiting);
        Self {
            most: most_waiting as usize,
            enough: enough as usize,
            is_short: false,
            since: None,
        }
    }

    /// How many may wait, now that so many do.
    fn after(&mut self, waiting: usize, now: Instant) -> usize {
        let turns = if self.is_short {
            waiting <= self.enough / 2
        } else {
            waiting > self.enough
        };
        if !turns {
            self.since = None;
        } else if now >= *self.since.get_or_insert(now) + Self::LASTING {
            self.is_short = !self.is_short;
            self.since = None;
        }
        if self.is_short {
            self.enough
        } else {
            self.most
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many places for writes of so many bytes as it gets.
    fn fill(places: &Arc<Places>, store_id: i64, bytes: usize) -> Vec<Place> {
        std::iter::from_fn(|| places.take(store_id, bytes).ok()).collect()
    }

    #[test]
    fn a_full_queue_takes_more_from_a_store_that_has_less_than_its_share() {
        let places = Places::new(256, 60);
        let flood = fill(&places, 1, 1);
        assert_eq!(flood.len(), 60);
        assert!(places.check(1).is_err());
        assert!(places.check(2).is_ok());
        let half = fill(&places, 2, 1);
        assert_eq!(half.len(), 30);
        let third = fill(&places, 3, 1);
        assert_eq!(third.len(), 20);
        // However many stores come, no more than twice as many wait.
        let others: Vec<Place> = (4..100).flat_map(|id| fill(&places, id, 1)).collect();
        assert_eq!(places.waiting(), 120);
        assert!(places.check(100).is_err());
        drop((flood, half, third));
        assert!(places.check(1).is_ok());
        drop(others);
        let taken = places.taken();
        assert!(taken.stores.is_empty());
        assert_eq!((taken.all.writes, taken.all.bytes), (0, 0));
    }

    #[test]
    fn bytes_are_shared_like_places_and_a_lone_write_of_any_size_is_let_in() {
        const MIB: usize = 1024 * 1024;
        let places = Places::new(256, 1_000);
        let lone = places.take(1, 2 * QUEUE_BYTES).expect("a place");
        assert!(places.take(2, MIB).is_err());
        drop(lone);
        let flood = fill(&places, 1, MIB);
        assert_eq!(flood.len() * MIB, QUEUE_BYTES);
        let other = fill(&places, 2, MIB);
        assert_eq!(other.len() * MIB, QUEUE_BYTES / 2);
        assert!(places.check(3).is_err(), "the reserve is used up");
    }

    #[test]
    fn what_is_held_up_has_a_place_and_is_no_crowd() {
        let places = Places::new(1, 200);
        let held: Vec<Place> = (0..200).map(|_| places.hold_up(1, 1)).collect();
        assert_eq!(places.waiting(), 0);
        for _ in 0..3 {
            places.look_at_the_crowd();
            std::thread::sleep(Crowd::LASTING);
        }
        assert!(places.check(1).is_err());
        assert_eq!(fill(&places, 2, 1).len(), 100);
        drop(held);
        assert!(places.check(1).is_ok());
    }

    /// What may wait after each of these numbers was seen waiting, 50 ms apart.
    fn limits(crowd: &mut Crowd, waiting: &[usize]) -> Vec<usize> {
        let mut now = Instant::now();
        let mut step = |waiting: &usize| {
            now += Duration::from_millis(50);
            crowd.after(*waiting, now)
        };
        waiting.iter().map(&mut step).collect()
    }

    #[test]
    fn a_burst_fills_the_queue_and_a_lasting_crowd_does_not() {
        let mut crowd = Crowd::new(256, 1_024);
        let burst = [1_024, 768, 10, 1_024, 129, 128, 129];
        let lasting = [10, 500, 500, 500, 500, 128, 65];
        let calm = [64, 65, 64, 0, 64, 1_000, 0];
        let seen = limits(&mut crowd, &[burst, lasting, calm].concat());
        let (long, short) = (1_024, 128);
        let after_burst = [long; 7];
        let after_lasting = [long, long, long, short, short, short, short];
        let after_calm = [short, short, short, short, long, long, long];
        assert_eq!(seen, [after_burst, after_lasting, after_calm].concat());
    }

    #[test]
    fn a_queue_that_is_set_short_stays_as_it_is() {
        for (batch, queue) in [(256, 64), (1, 128), (256, 1)] {
            let mut crowd = Crowd::new(batch, queue);
            let most = queue as usize;
            assert_eq!(limits(&mut crowd, &[most; 9]), [most; 9]);
        }
        assert_eq!(Crowd::new(1, 1_024).enough, 128);
        assert_eq!(Crowd::new(1_024, 4_096).enough, 512);
    }
}
