//! How fast an export is called: a receiver that is dead or busy must not take the room of others.
//!
//! Calls that time out or find nobody halve the number of calls under way, each one that is taken soon
//! adds one. One that takes long takes one off, whatever it comes to, but some are left: a receiver
//! that needs its time is not dead. A receiver that says that it is busy, but not for how long, is left
//! alone for a time that grows while it keeps saying so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// Calls of one export under way.
const MOST: usize = 16;
/// A call that takes this time is slow.
const SLOW: Duration = Duration::from_secs(2);
/// Calls of one export under way whose calls are slow.
const MOST_SLOW: usize = 4;
/// How long a busy receiver is left alone at first, and at most.
const FIRST_WAIT: TimeDelta = TimeDelta::seconds(5);
const LONGEST_WAIT: TimeDelta = TimeDelta::minutes(5);
/// Exports remembered; beyond that, those that nobody works for are forgotten.
const MOST_REMEMBERED: usize = 10_000;

/// The pace of one export, as far as this process knows.
pub struct Pace(Mutex<Known>);

#[derive(Clone, Copy)]
struct Known {
    most: usize,
    wait: TimeDelta,
    left_alone_until: DateTime<Utc>,
}

impl Known {
    fn slow_down(&mut self) {
        if self.most > MOST_SLOW {
            self.most -= 1;
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(Known {
            most: MOST,
            wait: TimeDelta::zero(),
            left_alone_until: DateTime::UNIX_EPOCH,
        }))
    }
}

impl Pace {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that may be under way.
    #[must_use]
    pub fn most(&self) -> usize {
        self.known().most
    }

    /// A call was taken within this time.
    pub fn note_success(&self, time: Duration) {
        let mut known = self.known();
        known.wait = TimeDelta::zero();
        if time < SLOW {
            known.most = (known.most + 1).min(MOST);
        } else {
            known.slow_down();
        }
    }

    /// A call was answered, but not taken, within this time.
    pub fn note_refusal(&self, time: Duration) {
        if time >= SLOW {
            self.known().slow_down();
        }
    }

    /// A call found nobody, or was not answered.
    pub fn note_silence(&self) {
        let mut known = self.known();
        known.most = (known.most / 2).max(1);
    }

    /// A call that began then was answered by a busy receiver; gives how long to leave it alone.
    /// What was under way when it was last left alone says nothing new.
    pub fn note_busy(&self, began: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
        let mut known = self.known();
        if began >= known.left_alone_until {
            known.wait = (known.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
            known.left_alone_until = now + known.wait;
        }
        known.left_alone_until
    }
}

/// The paces of all exports that this process has worked for.
#[derive(Clone, Default)]
pub struct Paces(Arc<Mutex<HashMap<Uuid, Arc<Pace>>>>);

impl Paces {
    /// The pace of an export: where it was left.
    #[must_use]
    pub fn of(&self, export_id: Uuid) -> Arc<Pace> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if paces.len() >= MOST_REMEMBERED {
            paces.retain(|_, pace| Arc::strong_count(pace) > 1);
        }
        Arc::clone(paces.entry(export_id).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1_999);

    #[test]
    fn silence_halves_down_to_one_and_each_success_adds_one() {
        let paces = Paces::default();
        let pace = paces.of(Uuid::nil());
        let mut seen = vec![pace.most()];
        for _ in 0..5 {
            pace.note_silence();
            seen.push(pace.most());
        }
        assert_eq!(seen, [16, 8, 4, 2, 1, 1]);
        pace.note_success(SOON);
        assert_eq!(paces.of(Uuid::nil()).most(), 2, "remembered");
        for _ in 0..20 {
            pace.note_success(SOON);
        }
        assert_eq!(pace.most(), MOST);
    }

    #[test]
    fn slow_calls_are_fewer_and_no_success_of_theirs_adds_one() {
        let pace = Pace::default();
        pace.note_refusal(SOON);
        assert_eq!(pace.most(), MOST);
        pace.note_refusal(SLOW);
        pace.note_success(SLOW);
        assert_eq!(pace.most(), MOST - 2);
        for _ in 0..20 {
            pace.note_success(SLOW);
        }
        assert_eq!(pace.most(), MOST_SLOW);
        pace.note_silence();
        pace.note_success(SLOW);
        assert_eq!(pace.most(), MOST_SLOW / 2);
        pace.note_success(SOON);
        assert_eq!(pace.most(), MOST_SLOW / 2 + 1);
    }

    #[test]
    fn a_busy_receiver_is_left_alone_longer_and_longer() {
        let pace = Pace::default();
        let mut now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            let until = pace.note_busy(now, now);
            assert_eq!(until, now + TimeDelta::seconds(seconds));
            // Another that was under way.
            assert_eq!(pace.note_busy(now, now + TimeDelta::seconds(1)), until);
            now = until;
        }
        pace.note_success(SOON);
        assert_eq!(pace.note_busy(now, now), now + FIRST_WAIT);
    }
}
