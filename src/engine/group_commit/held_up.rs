//! What is held up: a batch that meets a lock of somebody else finds out which of its writes the
//! lock is about, writes the others, and tries those again without holding a lane.
//!
//! ```text
//!  lane     [ batch: a b c d e f ✗ lock ]
//!           [ a b c ✓ ][ d e f ✗ ][ d ✓ ][ e ✗ ][ f ✓ ]         sorted out, each in a turn of its own
//!  beside                                     pause [ e ✗ ]  pause  [ e ✓ ]
//! ```
//!
//! Nobody can be asked which rows are locked: a row can be, but not a key that somebody else is
//! about to insert. So parts of the batch are tried, larger ones after a success and smaller ones
//! after a failure, and each gives up on a lock almost at once. Writes that have a key in common
//! stay together in a [`Group`], in their order. The keys of a group stay reserved until it is
//! answered, so nobody overtakes it: later writes of its keys wait in the queue.
//!
//! A commit that got no answer, and whose rows are then found locked (perhaps by that very commit),
//! is settled in the same way: its batch is one group that keeps the answers of the commit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::places::Place;
use super::{Batch, Caller, Class, Flight, LaneKey, Lanes, Metrics, SHORT, hand_out, refuse};
use crate::engine::Resource;
use crate::engine::failure::Failure;
use crate::engine::write::{self, Answers, LockWait, Options, Write};
use crate::error::Error;
use crate::vitals::Pulse;

/// The pauses between two rounds: they grow while nothing gets on.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Groups that one round finds locked; the others wait for the next one.
const MOST_LOCKED: usize = 8;
/// How long the rows of a commit without an answer are waited for, at least.
const SETTLING: Duration = Duration::from_secs(10);

/// Sees to it that every caller of a batch that met a lock gets an answer. Where the batch had a
/// commit without an answer before, `lost` are the answers of that.
pub(super) async fn see_through<R: Resource>(
    batch: Batch<R>,
    lost: Option<Answers<R>>,
    mut flight: Flight,
    lanes: &Lanes,
    pulse: &Pulse,
    metrics: &Metrics,
) {
    let mut rounds = Rounds {
        class: batch.class,
        options: Options {
            lock_wait: LockWait::Short,
            // Bulk gives its lane up for a lost database; what is tried here holds others' turns.
            patience: SHORT,
            ..batch.options()
        },
        groups: groups_of(batch, lost, lanes),
        lanes,
        pulse,
        metrics,
    };
    // They belong to the groups now.
    flight.keys.clear();
    // Of a single one it is known that it is locked.
    if rounds.groups.len() > 1 {
        rounds.run(Stage::SortingOut).await;
    }
    let mut pause = SHORTEST_PAUSE;
    while !rounds.groups.is_empty() {
        rounds.hold_up();
        tokio::time::sleep(pause).await;
        rounds.expire();
        let gets_on = rounds.run(Stage::TryingAgain).await;
        pause = if gets_on {
            SHORTEST_PAUSE
        } else {
            LONGEST_PAUSE.min(pause * 2)
        };
    }
}

/// The writes of a batch, parted by what they have in common; all in one if they have to be settled
/// together.
fn groups_of<R: Resource>(
    batch: Batch<R>,
    lost: Option<Answers<R>>,
    lanes: &Lanes,
) -> VecDeque<Group<R>> {
    let mut writes = batch.writes.into_iter();
    let alone = batch.callers.into_iter().map(|caller| {
        let writes: Vec<_> = writes.by_ref().take(caller.writes).collect();
        let keys = writes.iter().flat_map(Write::lane_keys).collect();
        let lanes = lanes.clone();
        Group {
            writes,
            callers: vec![caller],
            flight: Flight { lanes, keys },
            counted: None,
            settling: None,
        }
    });
    let alone: Vec<Group<R>> = alone.collect();
    if lost.is_some() {
        return Group::to_settle(alone, lost).into_iter().collect();
    }
    let numbers = by_common_keys(alone.iter().map(|group| group.flight.keys.as_slice()));
    let mut groups: VecDeque<Group<R>> = VecDeque::new();
    for (number, group) in numbers.into_iter().zip(alone) {
        match groups.get_mut(number) {
            Some(first) => first.absorb(group),
            None => groups.push_back(group),
        }
    }
    groups
}

/// Which of these belong together, because they have a key in common or each has one with a third:
/// the same number, counted from 0 in order of the first of each.
fn by_common_keys<'a>(all_keys: impl Iterator<Item = &'a [LaneKey]>) -> Vec<usize> {
    fn root(earlier: &[usize], mut at: usize) -> usize {
        while earlier[at] != at {
            at = earlier[at];
        }
        at
    }
    let mut first_with = HashMap::new();
    // Of each one an earlier one that it belongs to, itself if there is none.
    let mut earlier = Vec::new();
    for (at, keys) in all_keys.enumerate() {
        earlier.push(at);
        for key in keys {
            let other = *first_with.entry(*key).or_insert(at);
            let (one, other) = (root(&earlier, at), root(&earlier, other));
            earlier[one.max(other)] = one.min(other);
        }
    }
    let mut numbers = HashMap::new();
    let number = |at| {
        let next = numbers.len();
        *numbers.entry(root(&earlier, at)).or_insert(next)
    };
    (0..earlier.len()).map(number).collect()
}

/// Writes of which none may overtake another.
struct Group<R: Resource> {
    writes: Vec<Write<R>>,
    callers: Vec<Caller<R>>,
    /// Its keys.
    flight: Flight,
    /// Set once it is known to be held up.
    counted: Option<Counted>,
    settling: Option<Settling<R>>,
}

/// A commit that got no answer.
struct Settling<R: Resource> {
    answers: Option<Answers<R>>,
    until: Instant,
}

impl<R: Resource> Group<R> {
    /// Takes in what came later.
    fn absorb(&mut self, mut later: Self) {
        self.writes.append(&mut later.writes);
        self.callers.append(&mut later.callers);
        self.flight.keys.append(&mut later.flight.keys);
    }

    /// One group of all, if there are any.
    fn to_settle(groups: Vec<Self>, answers: Option<Answers<R>>) -> Option<Self> {
        let mut one = groups.into_iter().reduce(|mut one, group| {
            one.absorb(group);
            one
        })?;
        let soonest = Instant::now() + SETTLING;
        let latest = one.callers.iter().map(|caller| caller.expires);
        let new = latest.fold(soonest, Instant::max);
        let until = one.settling.map_or(new, |settling| settling.until);
        one.settling = Some(Settling { answers, until });
        Some(one)
    }

    /// Refuses what has waited too long: nothing was done of it, unless a commit got no answer.
    fn expire(&mut self, now: Instant) {
        if let Some(settling) = &self.settling {
            if settling.until <= now {
                let locked = sqlx::Error::Protocol("its rows are locked".to_owned());
                let unknown = Failure::CommitLost(locked).into_error();
                refuse(unknown, std::mem::take(&mut self.callers));
            }
            return;
        }
        if self.callers.iter().all(|caller| caller.expires > now) {
            return;
        }
        let mut writes = std::mem::take(&mut self.writes).into_iter();
        for caller in std::mem::take(&mut self.callers) {
            let own = writes.by_ref().take(caller.writes);
            if caller.expires <= now {
                own.for_each(drop);
                // Who hung up doesn't want to know.
                let _ = caller.reply.send(Err(Error::Overloaded));
            } else {
                self.writes.extend(own);
                self.callers.push(caller);
            }
        }
    }
}

/// Writes in the count of those that are held up, until it is dropped.
struct Counted {
    writes: usize,
    _places: Vec<Place>,
}

impl Counted {
    fn of(writes: usize, places: Vec<Place>) -> Self {
        Self::gauge().increment(Self::number(writes));
        Self {
            writes,
            _places: places,
        }
    }

    fn gauge() -> metrics::Gauge {
        metrics::gauge!("keyfold_write_held_up")
    }

    #[expect(clippy::cast_precision_loss, reason = "there are not many")]
    fn number(writes: usize) -> f64 {
        writes as f64
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        Self::gauge().decrement(Self::number(self.writes));
    }
}

/// What a round is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Most groups are free: each attempt takes its turn in a lane.
    SortingOut,
    /// All were locked when they were last tried: one attempt at a time, beside the lanes.
    TryingAgain,
}

/// The groups of one batch that are not answered yet.
struct Rounds<'a, R: Resource> {
    class: Class,
    options: Options,
    groups: VecDeque<Group<R>>,
    lanes: &'a Lanes,
    pulse: &'a Pulse,
    metrics: &'a Metrics,
}

impl<R: Resource> Rounds<'_, R> {
    /// Tries all groups, unless too many of them are locked; tells whether some were written.
    async fn run(&mut self, stage: Stage) -> bool {
        let mut untried = self.groups.len();
        let mut most = match stage {
            Stage::SortingOut => untried.div_ceil(2),
            Stage::TryingAgain => 1,
        };
        let (mut locked, mut gets_on) = (0, false);
        while untried > 0 && locked < MOST_LOCKED {
            let count = self.together(most.min(untried));
            let tried: Vec<_> = self.groups.drain(..count).collect();
            let turn = match stage {
                Stage::SortingOut => self.lanes.enter().await,
                Stage::TryingAgain => self.lanes.enter_again().await,
            };
            let mut held = self.attempt(tried).await;
            drop(turn);
            match held.len() {
                0 => {
                    gets_on = true;
                    untried -= count;
                    most = 2 * count;
                }
                1 => {
                    locked += 1;
                    untried -= count;
                    self.groups.append(&mut held);
                }
                _ => {
                    most = count / 2;
                    held.append(&mut self.groups);
                    self.groups = held;
                }
            }
        }
        gets_on
    }

    /// How many of the next groups may be tried together: what has to be settled stands alone.
    fn together(&self, most: usize) -> usize {
        let next = self.groups.iter().take(most);
        next.take_while(|group| group.settling.is_none())
            .count()
            .max(1)
    }

    /// Writes groups as one batch; gives those back that a lock holds up: all, or one to settle.
    async fn attempt(&self, mut groups: Vec<Group<R>>) -> VecDeque<Group<R>> {
        let sizes: Vec<usize> = groups.iter().map(|group| group.writes.len()).collect();
        let mut writes = Vec::with_capacity(sizes.iter().sum());
        let mut lost = None;
        for group in &mut groups {
            writes.append(&mut group.writes);
            lost = lost.or_else(|| group.settling.as_mut()?.answers.take());
        }
        let under_way = self.pulse.begin();
        let state = &self.lanes.0.state;
        let written = Box::pin(write::attempt(state, &writes, self.options, &mut lost)).await;
        drop(under_way);
        self.pulse
            .note(!written.as_ref().is_err_and(Failure::is_of_the_database));
        match written {
            Ok(answers) => {
                self.metrics.count_outcomes(&answers);
                hand_out(answers, groups.into_iter().flat_map(|group| group.callers));
                VecDeque::new()
            }
            Err(failure) if failure.is_of_a_lock() => {
                let mut writes = writes.into_iter();
                for (group, size) in groups.iter_mut().zip(sizes) {
                    group.writes.extend(writes.by_ref().take(size));
                }
                if lost.is_some() {
                    return Group::to_settle(groups, lost).into_iter().collect();
                }
                groups.into()
            }
            Err(failure) => {
                let callers = groups.into_iter().flat_map(|group| group.callers);
                refuse(failure.into_error(), callers);
                VecDeque::new()
            }
        }
    }

    /// Counts and marks those that are held up.
    fn hold_up(&mut self) {
        for group in &mut self.groups {
            if group.counted.is_some() {
                continue;
            }
            self.lanes.reserved().hold_up(&group.flight.keys);
            // Bulk is bounded by the number of its requests.
            let singles = group.writes.iter().filter(|_| self.class == Class::Single);
            let places = singles.map(|write| {
                let places = &self.lanes.0.places;
                places.hold_up(write.store_id, write.bytes)
            });
            let places = places.collect();
            group.counted = Some(Counted::of(group.writes.len(), places));
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        self.groups.retain_mut(|group| {
            group.expire(now);
            !group.callers.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_key_in_common_also_through_a_third_belongs_together() {
        let key = |name| LaneKey::of(1, "thing", name);
        let keys = [
            vec![key("a")],
            vec![key("b"), key("x")],
            vec![key("c"), key("y")],
            vec![key("d")],
            vec![key("b")],
            vec![key("x"), key("y")],
            vec![key("d"), key("d")],
            vec![],
        ];
        let numbers = by_common_keys(keys.iter().map(Vec::as_slice));
        assert_eq!(numbers, [0, 1, 1, 2, 1, 1, 2, 3]);
    }
}
