//! The loop that finds work and hands it out, within bounds.
//!
//! Work comes two ways. What this process has just committed is hinted at, and leased by its ids at
//! once; hints are a shortcut that may be lost. What is due, whoever wrote it, is found by the sweep:
//! once a second, and again at once as long as there is more than there is room for.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use uuid::Uuid;

use super::Leased;
use crate::state::State;
use crate::vitals::Pulse;

/// Rows of one kind under way in a process.
const IN_FLIGHT: u32 = 1_024;
/// Rows leased by one statement.
const SLICE: u32 = 128;
/// Hints that wait to be looked at; more are left to the sweep.
const MOST_HINTS: usize = 4_096;
/// How often due rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long one kind of work is waited for when it has no room, before the others are looked at.
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
pub struct Room(OwnedSemaphorePermit);

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
pub struct Hints(Option<mpsc::Sender<(i64, Uuid)>>);

impl Hints {
    /// A committed row is there to be worked on.
    pub fn give(&self, store_id: i64, id: Uuid) {
        if let Some(sender) = &self.0 {
            // A full queue, or no worker: the sweep of some process finds it.
            let _ = sender.try_send((store_id, id));
        }
    }

    /// No worker listens in this process.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }
}

/// A worker, before it runs.
pub struct Worker {
    state: State,
    kinds: BTreeMap<&'static str, Kind>,
    hints: mpsc::Receiver<(i64, Uuid)>,
}

/// Who does the work of one kind, and how much of it at once.
struct Kind {
    handler: Handler,
    room: Arc<Semaphore>,
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
        let (sender, hints) = mpsc::channel(MOST_HINTS);
        let sender = Hints(Some(sender));
        let kinds = handlers(&sender)?;
        let kinds = kinds.into_iter().map(|(name, handler)| {
            let room = Arc::new(Semaphore::new(IN_FLIGHT as usize));
            (name, Kind { handler, room })
        });
        let worker = Self {
            state: state.clone(),
            kinds: kinds.collect(),
            hints,
        };
        Ok((worker, sender))
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
                _ = self.hints.recv_many(&mut hints, SLICE as usize) => false,
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
                let _permits = kind.room.acquire_many(IN_FLIGHT).await;
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
                let permits = u32::try_from(rows.len()).unwrap_or(SLICE);
                // A hint is a slice at most, and room for one comes soon, or shutdown does.
                let Some(permit) = self.room(kind, permits).await else {
                    let due_at = now + TimeDelta::seconds(1);
                    let rows: Vec<_> = rows.iter().map(|row| (row.id, due_at)).collect();
                    let pool = &self.state.pool;
                    super::put_back(pool, store_id, lease_id, &rows, None).await?;
                    continue;
                };
                self.hand_out(kind, rows, permit);
            }
        }
        Ok(())
    }

    /// Leases what is due, a slice of each bucket and kind, so that no store's backlog and no kind of
    /// work holds up the others; says whether there is more.
    async fn sweep(&self) -> sqlx::Result<bool> {
        let names: Vec<&str> = self.kinds.keys().copied().collect();
        let now = self.state.clock.now();
        let mut due = super::due(&self.state.pool, &names, now).await?;
        // Each process begins elsewhere, so that they seldom meet.
        if !due.is_empty() {
            let first = rand::random_range(0..due.len());
            due.rotate_left(first);
        }
        let mut there_is_more = false;
        for (bucket, name) in due {
            let Some(kind) = self.kinds.get(name.as_str()) else {
                continue;
            };
            let Some(permit) = self.room(kind, SLICE).await else {
                if self.state.shutdown.is_cancelled() {
                    return Ok(false);
                }
                there_is_more = true;
                continue;
            };
            let now = self.state.clock.now();
            let lease_id = self.state.clock.new_id();
            let limit = i64::from(SLICE);
            let pool = &self.state.pool;
            let leased = super::lease_due(pool, bucket, &name, limit, lease_id, now).await?;
            there_is_more |= leased.len() >= SLICE as usize;
            self.hand_out(kind, leased, permit);
        }
        Ok(there_is_more)
    }

    /// Hands rows out, store by store.
    fn hand_out(&self, kind: &Kind, leased: Vec<Leased>, mut permit: OwnedSemaphorePermit) {
        let mut stores: BTreeMap<i64, Vec<Leased>> = BTreeMap::new();
        for row in leased {
            stores.entry(row.store_id).or_default().push(row);
        }
        for (store_id, rows) in stores {
            let Some(part) = permit.split(rows.len()) else {
                continue;
            };
            let work = Work {
                store_id,
                rows,
                room: Room(part),
            };
            let work = (kind.handler)(self.state.clone(), work);
            self.state.tasks.spawn(work);
        }
    }

    /// Room for so many rows, if it comes soon; none once shutdown has begun.
    async fn room(&self, kind: &Kind, rows: u32) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&kind.room).acquire_many_owned(rows);
        tokio::select! {
            () = self.state.shutdown.cancelled() => None,
            permit = tokio::time::timeout(PATIENCE, permit) => permit.ok()?.ok(),
        }
    }
}
