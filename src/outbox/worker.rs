//! The loop that finds work and hands it out, within bounds.
//!
//! Work comes two ways. What this process has just committed is hinted at, and leased by its ids at
//! once; hints are a shortcut that may be lost. What is due, whoever wrote it, is found by the sweep:
//! once a second, and again at once as long as there is more than there is room for.
//!
//! Stores have turns: a sweep leases a slice for each store that has something due, each store has a
//! share of the room for work under way ([`Pot`]), and of the hints that wait. So neither a backlog nor
//! work that doesn't end holds up the work of other stores.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Due, Leased};
use crate::shares::{Pot, Share};
use crate::state::State;
use crate::turns::Turns;
use crate::vitals::Pulse;

/// Rows of one kind under way in a process; of one store half of them.
const IN_FLIGHT: usize = 2_048;
/// Rows leased by one statement.
const SLICE: usize = 128;
/// A store that has work under way gets no less room at a time: a statement for each row is dear.
const LOT: usize = SLICE / 4;
/// Hints that wait to be looked at; more are left to the sweep.
const MOST_HINTS: usize = 4_096;
/// How often due rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A sweep that lasts longer is gone on with after what is new.
const SWEEP_FOR: Duration = Duration::from_millis(500);
/// How long a sweep that found no room pauses, and then waits for some at most, before all stores are
/// looked at again.
const PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_millis(50);
/// How long work may go on after shutdown began: longer than any provider takes to answer.
const LAST_WORK: Duration = Duration::from_secs(24);
/// How long to wait after the database failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Rows of one store and one kind, leased together.
#[derive(Debug)]
pub struct Work {
    /// Whose they are.
    pub store_id: i64,
    /// The rows.
    pub rows: Vec<Leased>,
    /// What they take of the room for work under way; dropped with them.
    pub room: Room,
}

/// A part of the room for work under way.
#[derive(Debug)]
pub struct Room(Share);

impl Room {
    /// Gives the room of so many rows back: they are not under way any more.
    pub fn give_back(&mut self, rows: usize) {
        drop(self.0.split(rows));
    }
}

/// Does the work of one kind, and settles it.
pub type Handler =
    Arc<dyn Fn(State, Work) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Where a process tells its own worker what it has just committed.
#[derive(Clone)]
pub struct Hints(Option<Arc<Hinted>>);

impl Hints {
    /// A committed row is there to be worked on.
    pub fn give(&self, store_id: i64, id: Uuid) {
        if let Some(hinted) = &self.0 {
            hinted.give(store_id, id);
        }
    }

    /// No worker listens in this process.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }
}

/// Hints that wait to be looked at.
#[derive(Default)]
struct Hinted {
    turns: Mutex<Turns<(i64, Uuid)>>,
    given: Notify,
}

impl Hinted {
    fn turns(&self) -> MutexGuard<'_, Turns<(i64, Uuid)>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a hint if the store leaves room for as many of others. What is not kept is found by the
    /// sweep of some process.
    fn give(&self, store_id: i64, id: Uuid) {
        let mut turns = self.turns();
        if turns.len_of(store_id) + turns.len() < MOST_HINTS {
            turns.push(store_id, (store_id, id));
            drop(turns);
            self.given.notify_one();
        }
    }

    fn is_empty(&self) -> bool {
        self.turns().is_empty()
    }

    /// Takes hints, one of each store in turn, once there are some.
    async fn recv_many(&self, hints: &mut Vec<(i64, Uuid)>, most: usize) {
        loop {
            {
                let mut turns = self.turns();
                hints.extend(std::iter::from_fn(|| turns.pop()).take(most));
            }
            if !hints.is_empty() {
                return;
            }
            self.given.notified().await;
        }
    }
}

/// A worker, before it runs.
pub struct Worker {
    state: State,
    kinds: BTreeMap<&'static str, Kind>,
    hints: Arc<Hinted>,
    /// What the last sweep found and did not come to.
    found: VecDeque<Due>,
}

/// Who does the work of one kind, and how much of it at once.
struct Kind {
    handler: Handler,
    room: Pot,
}

impl Worker {
    /// A worker for the kinds of work that these handlers do, and where it takes hints; the handlers
    /// can give some, too.
    ///
    /// # Errors
    /// When the handlers can't be set up.
    pub fn new<E>(
        state: &State,
        handlers: impl FnOnce(&Hints) -> Result<Vec<(&'static str, Handler)>, E>,
    ) -> Result<(Self, Hints), E> {
        let hints = Arc::new(Hinted::default());
        let giver = Hints(Some(Arc::clone(&hints)));
        let kinds = handlers(&giver)?;
        let kinds = kinds.into_iter().map(|(name, handler)| {
            let room = Pot::new(IN_FLIGHT);
            (name, Kind { handler, room })
        });
        let worker = Self {
            state: state.clone(),
            kinds: kinds.collect(),
            hints,
            found: VecDeque::new(),
        };
        Ok((worker, giver))
    }

    /// Works until shutdown, then waits for what is under way, but not for ever.
    pub async fn run(&mut self, pulse: &Pulse) {
        let shutdown = self.state.shutdown.clone();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut there_is_more = false;
        loop {
            let mut hints = Vec::new();
            let swept = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = sweep.tick() => true,
                // What is new comes before what has waited: it waits for company with nobody.
                () = std::future::ready(()), if there_is_more && self.hints.is_empty() => true,
                // Handlers can give hints, so there is always somebody who could.
                _ = self.hints.recv_many(&mut hints, SLICE) => false,
            };
            let under_way = pulse.begin();
            let done = if swept {
                self.sweep().await
            } else {
                self.take_fresh(hints).await.map(|()| there_is_more)
            };
            drop(under_way);
            pulse.note(done.is_ok());
            there_is_more = matches!(done, Ok(true));
            if let Err(error) = done {
                tracing::warn!(%error, "the outbox has to wait: the database can't be asked");
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(AFTER_FAILURE) => {}
                }
            }
        }
        let all = async {
            for kind in self.kinds.values() {
                kind.room.filled().await;
            }
        };
        if tokio::time::timeout(LAST_WORK, all).await.is_err() {
            tracing::warn!("some work was still under way: its leases run out");
        }
    }

    /// Leases what was hinted at.
    async fn take_fresh(&self, hints: Vec<(i64, Uuid)>) -> sqlx::Result<()> {
        let mut stores: BTreeMap<i64, Vec<Uuid>> = BTreeMap::new();
        for (store_id, id) in hints {
            stores.entry(store_id).or_default().push(id);
        }
        for (store_id, ids) in stores {
            let now = self.state.clock.now();
            let lease_id = self.state.clock.new_id();
            let leased =
                super::lease_fresh(&self.state.pool, store_id, &ids, lease_id, now).await?;
            let mut kinds: BTreeMap<String, Vec<Leased>> = BTreeMap::new();
            for row in leased {
                kinds.entry(row.kind.clone()).or_default().push(row);
            }
            for (name, rows) in kinds {
                let Some(kind) = self.kinds.get(name.as_str()) else {
                    continue;
                };
                let late = self.hand_out(kind, store_id, rows, None);
                // They keep their place among those of the store.
                let late: Vec<_> = late.iter().map(|row| (row.id, row.due_at)).collect();
                if !late.is_empty() {
                    super::put_back(&self.state.pool, store_id, lease_id, &late, None).await?;
                }
            }
        }
        Ok(())
    }

    /// Leases what is due, a slice for each store and kind that has room; says whether there is more.
    async fn sweep(&mut self) -> sqlx::Result<bool> {
        let ends = Instant::now() + SWEEP_FOR;
        if self.found.is_empty() {
            self.look().await?;
        }
        let (mut there_is_more, mut is_idle) = (false, true);
        while let Some(Due { store_id, kind }) = self.found.pop_front() {
            let Some((name, kind)) = self.kinds.get_key_value(kind.as_str()) else {
                continue;
            };
            let Some(room) = kind.room.take_up_to(store_id, SLICE, LOT) else {
                there_is_more = true;
                continue;
            };
            let limit = room.amount();
            let (now, lease_id) = (self.state.clock.now(), self.state.clock.new_id());
            let pool = &self.state.pool;
            let rows = i64::try_from(limit).unwrap_or(i64::MAX);
            let leased = super::lease_due(pool, store_id, name, rows, lease_id, now).await?;
            there_is_more |= leased.len() >= limit;
            is_idle &= leased.is_empty();
            self.hand_out(kind, store_id, leased, Some(room));
            if Instant::now() >= ends {
                break;
            }
        }
        there_is_more |= !self.found.is_empty();
        if there_is_more && is_idle {
            self.wait_for_room().await;
        }
        Ok(there_is_more)
    }

    /// Looks for the stores that have something due.
    async fn look(&mut self) -> sqlx::Result<()> {
        let names: Vec<&str> = self.kinds.keys().copied().collect();
        let now = self.state.clock.now();
        self.found = super::due(&self.state.pool, &names, now).await?.into();
        // Each process begins elsewhere, so that they seldom meet, and every store is among the first
        // at some time.
        if !self.found.is_empty() {
            let first = rand::random_range(0..self.found.len());
            self.found.rotate_left(first);
        }
        Ok(())
    }

    /// Hands rows of a store out, as far as it has room for them; gives the others.
    fn hand_out(
        &self,
        kind: &Kind,
        store_id: i64,
        mut rows: Vec<Leased>,
        room: Option<Share>,
    ) -> Vec<Leased> {
        let room = room.or_else(|| kind.room.take_up_to(store_id, rows.len(), 1));
        let late = rows.split_off(rows.len().min(room.as_ref().map_or(0, Share::amount)));
        let part = room.and_then(|mut room| room.split(rows.len()));
        if let Some(part) = part.filter(|part| part.amount() > 0) {
            let room = Room(part);
            let work = Work {
                store_id,
                rows,
                room,
            };
            let work = (kind.handler)(self.state.clone(), work);
            self.state.tasks.spawn(work);
        }
        late
    }

    /// Waits until there may be more room, but not for long.
    async fn wait_for_room(&self) {
        tokio::time::sleep(PAUSE).await;
        let returned = self
            .kinds
            .values()
            .map(|kind| Box::pin(kind.room.returned()));
        let returned = futures_util::future::select_all(returned);
        let _ = tokio::time::timeout(PATIENCE, returned).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hints_of_a_flood_leave_room_and_turns_to_those_of_others() {
        let hinted = Hinted::default();
        let id = Uuid::nil();
        for _ in 0..2 * MOST_HINTS {
            hinted.give(1, id);
        }
        for store_id in [2, 3] {
            hinted.give(store_id, id);
        }
        let mut hints = Vec::new();
        hinted.recv_many(&mut hints, 4).await;
        let stores: Vec<i64> = hints.iter().map(|(store_id, _)| *store_id).collect();
        assert_eq!(stores, [1, 2, 3, 1]);
        hinted.recv_many(&mut hints, usize::MAX).await;
        assert_eq!(hints.len(), MOST_HINTS / 2 + 2);
        assert!(hinted.is_empty());
    }
}
