//! From the outbox to the receiver: one process works for an export at a time.
//!
//! ```text
//!  woken ─ leased ─┬─► walk the run ─► take what is due ─► asked: log ─┬─ skip ────────┐
//!    ▲             │                                                   └─ call ─ answer┤
//!    │             └◄──────────────────────────────────────────────────── settle ◄─────┘
//!    │  nothing is due: the row is held, and looked at again
//!    └─ nothing waits: the row goes; else it is due when the next call is
//! ```
//!
//! The outbox has one row for an export, whatever waits. No wake-up is lost: whoever lets a record
//! wait writes that first and wakes the row then ([`outbox::wake`]), both in one transaction. The
//! pump ends by holding the row and looking once more. Whoever woke it before has committed by
//! then, or the hold would have waited, so the look sees what they wrote. Whoever comes after waits
//! for the hold's end, and makes the row due, or a new one.
//!
//! A record has one delivery, and what is in hand is not taken again: so its calls come one after
//! the other, each with the newest state. A process that is killed between a call and its
//! settlement leaves everything as it was: the next call has the same key.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use super::definitions::{self, Stored, Which};
use super::deliveries::{self, Due};
use super::plan::{Decided, Plan};
use super::settle::{Came, Settled, settle};
use super::{log, runs, schedule};
use crate::engine::transaction::Transaction;
use crate::outbox::{self, Handler, Leased, Settlement, Work};
use crate::resources::catalog::{self, Snapshot};
use crate::state::State;
use crate::targets::{Answer, CallError, Client};

/// Calls of one export under way.
const MOST_OF_EXPORT: usize = 16;
/// Calls of a process under way.
const MOST_CALLS: usize = 256;
/// Bytes of bodies that are to be sent, in KiB: all of a process.
const MOST_BODIES_KIB: usize = 64 * 1_024;
/// Slices of records that are being loaded at a time, whose size nobody knows yet.
const MOST_LOADS: usize = 4;
/// Records taken in hand together.
const SLICE: usize = 32;
/// What came of so many deliveries is written down at once.
const SETTLED_AT: usize = 32;
/// Or of fewer after this time.
const SETTLED_AFTER: Duration = Duration::from_millis(50);
/// How often an export with calls under way looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a lease lasts, and how often it is extended.
const LEASE: TimeDelta = TimeDelta::seconds(30);
const EXTEND_EVERY: TimeDelta = TimeDelta::seconds(10);
/// How long bodies wait for room.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an export waits whose secrets can't be opened.
const UNUSABLE: TimeDelta = TimeDelta::minutes(1);

/// Works for exports.
#[must_use]
pub fn handler(client: Client) -> Handler {
    let shared = Shared {
        client,
        calls: Arc::new(Semaphore::new(MOST_CALLS)),
        bodies: Arc::new(Semaphore::new(MOST_BODIES_KIB)),
        loads: Arc::new(Semaphore::new(MOST_LOADS)),
    };
    Arc::new(move |state, work| Box::pin(work_for(state, shared.clone(), work)))
}

async fn work_for(state: State, shared: Shared, work: Work) {
    let Work { rows, mut room, .. } = work;
    let mut pumps: FuturesUnordered<_> = rows
        .into_iter()
        .map(|row| Pump::new(&state, &shared, row).work())
        .collect();
    while pumps.next().await.is_some() {
        room.give_back(1);
    }
}

/// What all exports of a process share.
#[derive(Clone)]
struct Shared {
    client: Client,
    calls: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    loads: Arc<Semaphore>,
}

/// A call that has its room.
struct Ready {
    due: Due,
    external_id: Option<String>,
    call: Decided,
    /// What the body takes of the room for bodies.
    room: OwnedSemaphorePermit,
}

/// What looking for work came to.
enum Found {
    /// There may be more.
    Something,
    /// Nothing for now.
    Nothing,
    /// No calls are to be made, before this time if there is one.
    Stop(Option<DateTime<Utc>>),
}

/// The work for one export.
struct Pump {
    state: State,
    shared: Shared,
    row: Leased,
    extended_at: Option<DateTime<Utc>>,
    plan: Option<Arc<Plan>>,
    ready: VecDeque<Ready>,
    calls: FuturesUnordered<BoxFuture<'static, (Uuid, Option<Settled>)>>,
    /// Records that are ready, called, or to be settled.
    in_hand: HashSet<Uuid>,
    done: Vec<Settled>,
    done_since: Option<Instant>,
    looked_at: Option<Instant>,
    /// No calls are to be made before.
    stopped: Option<Option<DateTime<Utc>>>,
}

impl Pump {
    fn new(state: &State, shared: &Shared, row: Leased) -> Self {
        Self {
            state: state.clone(),
            shared: shared.clone(),
            row,
            extended_at: None,
            plan: None,
            ready: VecDeque::new(),
            calls: FuturesUnordered::new(),
            in_hand: HashSet::new(),
            done: Vec::new(),
            done_since: None,
            looked_at: None,
            stopped: None,
        }
    }

    async fn work(mut self) {
        let ended = self.run().await;
        self.drain().await;
        let due_at = match ended {
            Ok(Ended::Settled) => return,
            Ok(Ended::Early) => self.state.clock.now(),
            Err(error) => {
                tracing::warn!(%error, "an export has to wait: the database can't be asked");
                self.state.clock.now() + TimeDelta::seconds(1)
            }
        };
        let Leased {
            store_id,
            id,
            lease_id,
            ..
        } = self.row;
        let rows = [(id, due_at)];
        let pool = &self.state.pool;
        if let Err(error) = outbox::put_back(pool, store_id, lease_id, &rows, None).await {
            tracing::warn!(%error, "an export waits until its lease has run out");
        }
    }

    async fn run(&mut self) -> sqlx::Result<Ended> {
        loop {
            if !self.keep_lease().await? {
                return Ok(Ended::Settled);
            }
            if self.state.shutdown.is_cancelled() {
                return Ok(Ended::Early);
            }
            self.start_calls();
            if self.ready.is_empty() && self.is_time_to_look() {
                self.looked_at = Some(Instant::now());
                match self.look().await? {
                    Found::Something => {
                        self.looked_at = None;
                        self.start_calls();
                    }
                    Found::Nothing => {}
                    Found::Stop(until) => self.stopped = Some(until),
                }
            }
            let is_idle = self.calls.is_empty() && self.ready.is_empty();
            if self.is_time_to_settle() || is_idle && !self.done.is_empty() {
                self.settle().await;
            } else if is_idle {
                let has_looked = self.looked_at.is_some() || self.stopped.is_some();
                if has_looked && self.finish().await? {
                    return Ok(Ended::Settled);
                }
                // Something has come to wait since it was looked for.
                (self.looked_at, self.stopped) = (None, None);
            } else {
                self.wait().await;
            }
        }
    }

    /// Whether the work is still ours.
    async fn keep_lease(&mut self) -> sqlx::Result<bool> {
        let now = self.state.clock.now();
        if self.extended_at.is_some_and(|at| now - at < EXTEND_EVERY) {
            return Ok(true);
        }
        let Leased {
            store_id,
            id,
            lease_id,
            ..
        } = self.row;
        self.extended_at = Some(now);
        outbox::extend(&self.state.pool, store_id, id, lease_id, now + LEASE).await
    }

    fn is_time_to_look(&self) -> bool {
        let is_due = |at: Instant| at.elapsed() >= LOOK_EVERY;
        self.stopped.is_none() && self.looked_at.is_none_or(is_due)
    }

    fn is_time_to_settle(&self) -> bool {
        let is_old = |since: Instant| since.elapsed() >= SETTLED_AFTER;
        self.done.len() >= SETTLED_AT || self.done_since.is_some_and(is_old)
    }

    fn start_calls(&mut self) {
        let Some(plan) = &self.plan else { return };
        while self.calls.len() < MOST_OF_EXPORT {
            let Some(ready) = self.ready.pop_front() else {
                return;
            };
            let (state, shared) = (self.state.clone(), self.shared.clone());
            // A task of its own: it goes on while others are loaded or settled.
            let record_id = ready.due.record_id;
            let call = call(state, shared, Arc::clone(plan), ready);
            let called = self.state.tasks.spawn(call);
            let called = async move { (record_id, called.await.ok().flatten()) };
            self.calls.push(called.boxed());
        }
    }

    /// Waits for the next answer, but not for long.
    async fn wait(&mut self) {
        let longest = if self.done.is_empty() {
            LOOK_EVERY
        } else {
            SETTLED_AFTER
        };
        let first = tokio::select! {
            first = self.calls.next() => first,
            () = self.state.shutdown.cancelled() => None,
            () = tokio::time::sleep(longest) => None,
        };
        let mut next = first;
        while let Some((record_id, settled)) = next {
            self.note(record_id, settled);
            next = self.calls.next().now_or_never().flatten();
        }
    }

    fn note(&mut self, record_id: Uuid, settled: Option<Settled>) {
        let Some(settled) = settled else {
            // It was not called: it waits where it was.
            self.in_hand.remove(&record_id);
            return;
        };
        self.done.push(settled);
        self.done_since.get_or_insert_with(Instant::now);
    }

    async fn settle(&mut self) {
        let done = std::mem::take(&mut self.done);
        self.done_since = None;
        let Some(plan) = &self.plan else { return };
        settle(&self.state, &plan.export, &done).await;
        for settled in &done {
            self.in_hand.remove(&settled.due.record_id);
        }
        if done.iter().any(Settled::stops) {
            // The next look sees why.
            self.give_up_ready();
        }
        self.looked_at = None;
    }

    fn give_up_ready(&mut self) {
        for ready in self.ready.drain(..) {
            self.in_hand.remove(&ready.due.record_id);
        }
    }

    /// Waits for the calls under way, and settles them.
    async fn drain(&mut self) {
        self.give_up_ready();
        while let Some((record_id, settled)) = self.calls.next().await {
            self.note(record_id, settled);
        }
        self.settle().await;
    }

    /// Looks for work: walks the run, and takes what is due in hand.
    async fn look(&mut self) -> sqlx::Result<Found> {
        let Leased { store_id, id, .. } = self.row;
        let pool = self.state.pool.clone();
        let found = definitions::find(&pool, store_id, Which::Id(id)).await?;
        let now = self.state.clock.now();
        let Some(export) = found.into_iter().next().filter(Stored::is_active) else {
            return Ok(Found::Stop(None));
        };
        if let Some(until) = export.held_until.filter(|until| *until > now) {
            return Ok(Found::Stop(Some(until)));
        }
        let Some(plan) = self.planned(export) else {
            return Ok(Found::Stop(Some(now + UNUSABLE)));
        };
        let run_id = runs::can_walk(&pool, store_id, id).await?;
        if let Some(run_id) = run_id {
            self.walk(run_id).await?;
        }
        let in_hand: Vec<Uuid> = self.in_hand.iter().copied().collect();
        let limit = i64::try_from(SLICE).unwrap_or(i64::MAX);
        let due = deliveries::due(&pool, store_id, id, &in_hand, limit, now).await?;
        let is_all = due.len() < SLICE && run_id.is_none();
        self.prepare(&plan, due).await?;
        Ok(if is_all {
            Found::Nothing
        } else {
            Found::Something
        })
    }

    /// What calls have in common; none while the export's secrets can't be opened.
    fn planned(&mut self, export: Stored) -> Option<Arc<Plan>> {
        let known = self.plan.as_ref();
        let known = known.filter(|plan| plan.export.updated_at == export.updated_at);
        if let Some(plan) = known {
            return Some(Arc::clone(plan));
        }
        let store_id = export.store_id;
        let secrets = match export.secrets(self.state.config.secret_key.as_ref()) {
            Ok(secrets) => secrets,
            Err(error) => {
                tracing::error!(store_id, %error, "an export has to wait");
                return None;
            }
        };
        let plan = Arc::new(Plan::of(export, secrets));
        self.plan = Some(Arc::clone(&plan));
        Some(plan)
    }

    async fn walk(&mut self, run_id: Uuid) -> sqlx::Result<()> {
        let Leased { store_id, id, .. } = self.row;
        let mut transaction = Transaction::begin(&self.state.pool).await?;
        let connection = transaction.connection();
        let walked = runs::walk(&self.state, connection, store_id, id, run_id).await;
        match walked {
            Ok(()) => transaction.commit().await,
            Err(error) => {
                transaction.rollback().await;
                Err(error)
            }
        }
    }

    /// Decides what is called and what is skipped.
    async fn prepare(&mut self, plan: &Arc<Plan>, due: Vec<Due>) -> sqlx::Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        // Held until the bodies have their room: before that nobody knows how much it is.
        let loading = Arc::clone(&self.shared.loads).acquire_owned().await;
        let mut snapshots = self.load(&due).await?;
        let latest = self.latest(plan, &due).await?;
        for due in due {
            let snapshot = snapshots.remove(&due.record_id);
            let external_id = snapshot
                .as_ref()
                .and_then(|snapshot| snapshot.event_external_id.clone());
            let record_id = due.record_id;
            let decided = plan.decide(&due, snapshot, latest.get(&record_id));
            self.in_hand.insert(record_id);
            match decided {
                Err(came) => {
                    let settled = Settled {
                        due,
                        external_id,
                        came,
                    };
                    self.note(record_id, Some(settled));
                }
                Ok(call) => {
                    let Some(room) = self.room(call.body.len()).await else {
                        // Other bodies take all the room: the rest waits where it was.
                        self.in_hand.remove(&record_id);
                        break;
                    };
                    self.ready.push_back(Ready {
                        due,
                        external_id,
                        call,
                        room,
                    });
                }
            }
        }
        drop(loading);
        Ok(())
    }

    async fn load(&mut self, due: &[Due]) -> sqlx::Result<HashMap<Uuid, Snapshot>> {
        let mut ids: HashMap<&str, Vec<Uuid>> = HashMap::new();
        for one in due.iter().filter(|one| one.erased_at.is_none()) {
            ids.entry(&one.resource).or_default().push(one.record_id);
        }
        let mut connection = self.state.pool.acquire().await?;
        let mut snapshots = HashMap::new();
        for (resource, ids) in ids {
            let Some(entry) = catalog::entry(resource) else {
                continue;
            };
            let found = entry
                .by_ids(&mut connection, self.row.store_id, &ids)
                .await?;
            snapshots.extend(found.into_iter().map(|snapshot| (snapshot.id, snapshot)));
        }
        Ok(snapshots)
    }

    async fn latest(&mut self, plan: &Plan, due: &[Due]) -> sqlx::Result<HashMap<Uuid, Vec<u8>>> {
        let export = &plan.export;
        if !export.idempotency_enabled {
            return Ok(HashMap::new());
        }
        let ids: Vec<Uuid> = due.iter().map(|one| one.record_id).collect();
        let kept_after = log::kept_after(export.retention_days, self.state.clock.now());
        let pool = &self.state.pool;
        let latest = log::latest(pool, export.store_id, export.id, &ids, kept_after).await?;
        Ok(latest.into_iter().collect())
    }

    async fn room(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = bytes.div_ceil(1_024).clamp(1, MOST_BODIES_KIB);
        let kib = u32::try_from(kib).ok()?;
        let room = Arc::clone(&self.shared.bodies).acquire_many_owned(kib);
        tokio::time::timeout(PATIENCE, room).await.ok()?.ok()
    }

    /// Ends the work when nothing is due, see above; false when something is after all.
    async fn finish(&mut self) -> sqlx::Result<bool> {
        let Leased {
            store_id,
            id,
            lease_id,
            ..
        } = self.row;
        let mut transaction = Transaction::begin(&self.state.pool).await?;
        let connection = transaction.connection();
        let ended = async {
            if !outbox::hold(&mut *connection, store_id, id, lease_id).await? {
                return Ok(true);
            }
            let found = definitions::find(&mut *connection, store_id, Which::Id(id)).await?;
            let export = found.into_iter().next().filter(Stored::is_active);
            let settlement = match export {
                None => Settlement::Done,
                Some(export) => {
                    let next = next_time(&mut *connection, &export).await?;
                    let now = self.state.clock.now();
                    let stopped = self.stopped.flatten();
                    match next.map(|next| stopped.map_or(next, |until| until.max(next))) {
                        None => Settlement::Done,
                        Some(next) if next <= now => return Ok(false),
                        Some(due_at) => Settlement::Again { due_at, code: None },
                    }
                }
            };
            outbox::settle(connection, store_id, lease_id, &[(id, settlement)]).await?;
            Ok::<_, sqlx::Error>(true)
        }
        .await;
        match ended {
            Ok(true) => transaction.commit().await.map(|()| true),
            Ok(false) => {
                transaction.rollback().await;
                Ok(false)
            }
            Err(error) => {
                transaction.rollback().await;
                Err(error)
            }
        }
    }
}

/// How the work for an export has ended.
enum Ended {
    /// Its row says when it goes on; or it is somebody else's by now.
    Settled,
    /// There was more to be done.
    Early,
}

impl Settled {
    /// Whether no more calls may be wanted.
    fn stops(&self) -> bool {
        let stops = [Some(410), Some(429), Some(503)];
        matches!(&self.came, Came::Failed { status, .. } if stops.contains(status))
    }
}

/// When an export has something to do; none: nothing waits.
async fn next_time(
    connection: &mut sqlx::PgConnection,
    export: &Stored,
) -> sqlx::Result<Option<DateTime<Utc>>> {
    let (store_id, id) = (export.store_id, export.id);
    let mut next = deliveries::next_due(&mut *connection, store_id, id).await?;
    if runs::can_walk(connection, store_id, id).await?.is_some() {
        // It is due since ever.
        next = Some(DateTime::UNIX_EPOCH);
    }
    Ok(next.map(|next| export.held_until.map_or(next, |until| until.max(next))))
}

/// Makes a call; none when shutdown came first.
async fn call(state: State, shared: Shared, plan: Arc<Plan>, ready: Ready) -> Option<Settled> {
    let place = tokio::select! {
        place = shared.calls.acquire() => place.ok()?,
        () = state.shutdown.cancelled() => return None,
    };
    let Ready {
        due,
        external_id,
        call,
        room,
    } = ready;
    let Decided {
        url,
        key,
        content,
        body,
    } = call;
    let request = plan.request(url, &key, body, state.clock.now());
    let answer = shared.client.call(request).await;
    drop((place, room));
    let came = came(&state, answer, key, content);
    Some(Settled {
        due,
        external_id,
        came,
    })
}

fn came(state: &State, answer: Result<Answer, CallError>, key: String, content: [u8; 32]) -> Came {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            return Came::Failed {
                code: error.code().to_owned(),
                status: None,
                asked: None,
            };
        }
    };
    let number = answer.status.as_u16();
    let status = i16::try_from(number).unwrap_or(0);
    if answer.status.is_success() {
        return Came::Sent {
            key,
            content,
            status,
            entry_id: state.clock.new_id(),
        };
    }
    let now = state.clock.now();
    Came::Failed {
        code: format!("http_{number}"),
        status: Some(status),
        asked: answer.retry_after.map(|after| schedule::asked(after, now)),
    }
}
