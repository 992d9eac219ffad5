//! Which keys are taken, and by whom they are waited for.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher};
use std::sync::LazyLock;
use std::time::Instant;

use hashbrown::DefaultHashBuilder;

/// What must not be under way twice at the same time: a record, or a customer by one of its names.
/// Two that collide only wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey(u64);

impl LaneKey {
    /// The key of something of a store: of which kind, and its name.
    #[must_use]
    pub fn of(store_id: i64, kind: &'static str, name: &str) -> Self {
        static HASHES: LazyLock<DefaultHashBuilder> = LazyLock::new(Default::default);
        Self(HASHES.hash_one((store_id, kind, name)))
    }
}

/// Keys are hashes already.
#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type Keys = HashSet<LaneKey, BuildHasherDefault<AsItIs>>;
/// Keys that are waited for, and since when.
type Claims = HashMap<LaneKey, Instant, BuildHasherDefault<AsItIs>>;

/// The keys of all queues.
#[derive(Default)]
pub(super) struct Reserved {
    /// Of batches at the database.
    under_way: Keys,
    /// Of writes that somebody else's lock holds up. They may stay so for long.
    held_up: Keys,
    /// What each [`Claimant`] waits for, until its next look.
    claims: Vec<Claims>,
}

/// Writes of one queue that are looked at together.
#[derive(Clone, Copy)]
pub(super) struct Claimant(usize);

impl Reserved {
    pub fn claimant(&mut self) -> Claimant {
        self.claims.push(Claims::default());
        Claimant(self.claims.len() - 1)
    }

    pub fn take(&mut self, keys: &[LaneKey]) {
        self.under_way.extend(keys);
    }

    pub fn hold_up(&mut self, keys: &[LaneKey]) {
        for key in keys {
            self.under_way.remove(key);
        }
        self.held_up.extend(keys);
    }

    pub fn give_back(&mut self, keys: &[LaneKey]) {
        for key in keys {
            if !self.under_way.remove(key) {
                self.held_up.remove(key);
            }
        }
    }

    /// Forgets what a claimant waited for, as it may be gone.
    pub fn forget(&mut self, claimant: Claimant) {
        self.claims[claimant.0].clear();
    }

    fn is_claimed_before(&self, key: &LaneKey, since: Instant) -> bool {
        let is_older = |claims: &Claims| claims.get(key).is_some_and(|claim| *claim < since);
        self.claims.iter().any(is_older)
    }
}

/// One look through what waits, in its order.
///
/// A write that has to wait lets no later one of its own queue have one of its keys: these are
/// *awaited*. The other queues hear of it by *claims*: whoever came later leaves a key that is
/// claimed alone. Otherwise a document of many keys would wait for as long as any of them has
/// writes in another queue. Nothing is claimed by who waits for a key that is held up: what
/// lasts must not spread.
pub(super) struct Look<'a> {
    reserved: &'a mut Reserved,
    claimant: Claimant,
    awaited: Keys,
    claims: Claims,
}

impl<'a> Look<'a> {
    pub fn begin(reserved: &'a mut Reserved, claimant: Claimant) -> Self {
        Self {
            reserved,
            claimant,
            awaited: Keys::default(),
            claims: Claims::default(),
        }
    }

    /// Whether a write may go now; otherwise its keys are noted.
    pub fn lets_go(&mut self, keys: &[LaneKey], since: Instant) -> bool {
        let reserved = &*self.reserved;
        let is_behind =
            |key: &LaneKey| self.awaited.contains(key) || reserved.held_up.contains(key);
        let is_taken = |key: &LaneKey| {
            reserved.under_way.contains(key) || reserved.is_claimed_before(key, since)
        };
        let is_behind = keys.iter().any(is_behind);
        if !is_behind && !keys.iter().any(is_taken) {
            return true;
        }
        self.awaited.extend(keys);
        if !is_behind {
            for key in keys {
                let claim = self.claims.entry(*key).or_insert(since);
                *claim = since.min(*claim);
            }
        }
        false
    }

    /// Reserves what was taken, and lets the others know what is waited for.
    pub fn end(self, taken: &[LaneKey]) {
        self.reserved.take(taken);
        self.reserved.claims[self.claimant.0] = self.claims;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> LaneKey {
        LaneKey::of(1, "thing", name)
    }

    #[test]
    fn who_came_first_gets_the_key_that_two_queues_wait_for() {
        let mut reserved = Reserved::default();
        let (documents, singles) = (reserved.claimant(), reserved.claimant());
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let all = [key("a"), key("b"), key("c")];
        reserved.take(&[key("a")]);

        let mut look = Look::begin(&mut reserved, documents);
        assert!(!look.lets_go(&all, early));
        look.end(&[]);
        let mut look = Look::begin(&mut reserved, singles);
        assert!(!look.lets_go(&[key("b")], late), "claimed before");
        assert!(look.lets_go(&[key("c")], early), "as old as the claim");
        assert!(look.lets_go(&[key("d")], late));
        look.end(&[key("c")]);

        reserved.give_back(&[key("a"), key("c")]);
        let mut look = Look::begin(&mut reserved, documents);
        assert!(look.lets_go(&all, early));
        look.end(&all);
        reserved.give_back(&all);
        let mut look = Look::begin(&mut reserved, singles);
        assert!(look.lets_go(&[key("b")], late));
        look.end(&[]);
    }

    #[test]
    fn what_waits_for_a_held_up_key_claims_nothing_and_is_not_overtaken() {
        let mut reserved = Reserved::default();
        let (documents, singles) = (reserved.claimant(), reserved.claimant());
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        reserved.take(&[key("a")]);
        reserved.hold_up(&[key("a")]);
        let mut look = Look::begin(&mut reserved, documents);
        assert!(!look.lets_go(&[key("a"), key("b")], early));
        assert!(!look.lets_go(&[key("b")], late), "it stands behind");
        look.end(&[]);
        let mut look = Look::begin(&mut reserved, singles);
        assert!(look.lets_go(&[key("b")], late));
        look.end(&[]);
        reserved.give_back(&[key("a")]);
        let mut look = Look::begin(&mut reserved, singles);
        assert!(look.lets_go(&[key("a")], late));
        look.end(&[]);
    }

    #[test]
    fn a_claimant_who_is_gone_keeps_nobody_waiting() {
        let mut reserved = Reserved::default();
        let (documents, singles) = (reserved.claimant(), reserved.claimant());
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        reserved.take(&[key("a")]);
        let mut look = Look::begin(&mut reserved, documents);
        assert!(!look.lets_go(&[key("a"), key("b")], early));
        look.end(&[]);
        reserved.forget(documents);
        let mut look = Look::begin(&mut reserved, singles);
        assert!(look.lets_go(&[key("b")], late));
        look.end(&[]);
    }
}
