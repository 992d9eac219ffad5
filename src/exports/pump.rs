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
//! settlement leaves the key as it was: the next call has the same one. Before a call the delivery is
//! marked (`unsure`) where the log has an entry of the record: until a call is noted as taken, the
//! receiver may have another state than the log says, and nothing is skipped by it.
//!
//! Whatever the exports of a process share is shared by their stores ([`Pot`]): calls under way, bodies,
//! loads; and calls begin one of each store in turn. So a store whose receivers are slow, or that has
//! everything to send, leaves room for the next call of another one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use governor::{DefaultDirectRateLimiter, Quota};
use tokio::time::Instant;
use uuid::Uuid;

use super::definitions::{self, Stored, Which};
use super::deliveries::{self, Due};
use super::lease::Lease;
use super::pace::{Pace, Paces};
use super::plan::{Decided, Plan};
use super::settle::{Came, Settled, settle};
use super::{log, runs, schedule};
use crate::engine::transaction::Transaction;
use crate::outbox::{self, Handler, Leased, Settlement, Work};
use crate::resources::catalog::{self, Snapshot};
use crate::shares::{Pot, Share};
use crate::state::State;
use crate::targets::{Answer, CallError, Client};

/// Calls of a process under way; of one store half of them, as of all that follows.
const MOST_CALLS: usize = 512;
/// Calls begun in a second, for each processor: more would take from those who push and read what they
/// need. A call and its notes cost about 0.7 ms of a processor, for the service and Postgres together.
const CALLS_A_SECOND: u32 = 500;
/// Of them at once.
const BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(15);
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
/// How long an export without calls under way waits for room for a body.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an export waits whose secrets can't be opened.
const UNUSABLE: TimeDelta = TimeDelta::minutes(1);

/// Works for exports.
#[must_use]
pub fn handler(client: Client) -> Handler {
    let shared = Shared {
        client,
        calls: Pot::new(MOST_CALLS),
        bodies: Pot::new(MOST_BODIES_KIB),
        loads: Pot::new(MOST_LOADS),
        paces: Paces::default(),
        door: Pot::new(1),
        turns: Arc::new(DefaultDirectRateLimiter::direct(turns())),
    };
    Arc::new(move |state, work| Box::pin(work_for(state, shared.clone(), work)))
}

/// How often calls may begin.
fn turns() -> Quota {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    let calls = NonZeroU32::MIN.saturating_add(processors.saturating_mul(CALLS_A_SECOND) - 1);
    Quota::per_second(calls).allow_burst(BURST)
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
    calls: Pot,
    bodies: Pot,
    loads: Pot,
    paces: Paces,
    /// Whoever is in it begins the next call: stores come to it in turn.
    door: Pot,
    /// When the next call may begin.
    turns: Arc<DefaultDirectRateLimiter>,
}

/// A call that has its room.
struct Ready {
    due: Due,
    external_id: Option<String>,
    call: Decided,
    /// What the body takes of the room for bodies.
    room: Share,
}

/// What looking for work came to.
enum Found {
    /// There may be more.
    Something,
    /// Nothing for now.
    Nothing,
    /// No calls are to be made for now.
    Stop,
}

/// The work for one export.
struct Pump {
    state: State,
    shared: Shared,
    row: Leased,
    lease: Arc<Lease>,
    pace: Arc<Pace>,
    plan: Option<Arc<Plan>>,
    ready: VecDeque<Ready>,
    calls: FuturesUnordered<BoxFuture<'static, (Uuid, Option<Settled>)>>,
    /// Records that are ready, called, or to be settled.
    in_hand: HashSet<Uuid>,
    done: Vec<Settled>,
    done_since: Option<Instant>,
    looked_at: Option<Instant>,
    /// The last look found that no calls are to be made.
    is_stopped: bool,
    /// The secrets of the export as it was last changed then can't be opened: it waits until this
    /// time.
    unusable: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Room for a body that had none.
    reserved: Option<Share>,
}

impl Pump {
    fn new(state: &State, shared: &Shared, row: Leased) -> Self {
        Self {
            state: state.clone(),
            shared: shared.clone(),
            lease: Arc::new(Lease::of(state, &row)),
            pace: shared.paces.of(row.id),
            row,
            plan: None,
            ready: VecDeque::new(),
            calls: FuturesUnordered::new(),
            in_hand: HashSet::new(),
            done: Vec::new(),
            done_since: None,
            looked_at: None,
            is_stopped: false,
            unusable: None,
            reserved: None,
        }
    }

    async fn work(mut self) {
        let lease = Arc::clone(&self.lease);
        let work = async {
            let ended = self.run().await;
            self.drain().await;
            ended
        };
        let ended = tokio::select! {
            ended = work => ended,
            never = lease.keep() => match never {},
        };
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
            if self.state.shutdown.is_cancelled() {
                return Ok(Ended::Early);
            }
            if !self.lease.lasts() && !self.lease.extend().await? {
                return Ok(Ended::Settled);
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
                    Found::Stop => self.is_stopped = true,
                }
            }
            let is_idle = self.calls.is_empty() && self.ready.is_empty();
            if self.is_time_to_settle() || is_idle && !self.done.is_empty() {
                self.settle().await;
            } else if is_idle {
                let has_looked = self.looked_at.is_some() || self.is_stopped;
                if has_looked && self.finish().await? {
                    return Ok(Ended::Settled);
                }
                // Something has come to wait since it was looked for.
                (self.looked_at, self.is_stopped) = (None, false);
            } else {
                self.wait().await;
            }
        }
    }

    fn is_time_to_look(&self) -> bool {
        let is_due = |at: Instant| at.elapsed() >= LOOK_EVERY;
        !self.is_stopped && self.looked_at.is_none_or(is_due)
    }

    fn is_time_to_settle(&self) -> bool {
        let is_old = |since: Instant| since.elapsed() >= SETTLED_AFTER;
        self.done.len() >= SETTLED_AT || self.done_since.is_some_and(is_old)
    }

    fn start_calls(&mut self) {
        let Some(plan) = &self.plan else { return };
        while self.calls.len() < self.pace.most() {
            let Some(ready) = self.ready.pop_front() else {
                return;
            };
            let record_id = ready.due.record_id;
            let caller = Caller {
                state: self.state.clone(),
                shared: self.shared.clone(),
                lease: Arc::clone(&self.lease),
                pace: Arc::clone(&self.pace),
                plan: Arc::clone(plan),
            };
            // A task of its own: it goes on while others are loaded or settled.
            let called = self.state.tasks.spawn(caller.call(ready));
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
        settle(&self.state, plan.export.store_id, plan.export.id, &done).await;
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

    /// Waits for the calls under way, and settles them; what has not begun yet does not.
    async fn drain(&mut self) {
        self.lease.end();
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
            return Ok(Found::Stop);
        };
        if export.held_until.is_some_and(|until| until > now) {
            return Ok(Found::Stop);
        }
        let Some(plan) = self.planned(export, now) else {
            return Ok(Found::Stop);
        };
        let run_id = runs::can_walk(&pool, store_id, id).await?;
        if let Some(run_id) = run_id {
            self.walk(run_id).await?;
        }
        let in_hand: Vec<Uuid> = self.in_hand.iter().copied().collect();
        // As many as can be called soon.
        let most = self.pace.most();
        let free = most.saturating_sub(self.calls.len());
        let slice = (free + most).min(SLICE);
        let limit = i64::try_from(slice).unwrap_or(i64::MAX);
        let due = deliveries::due(&pool, store_id, id, &in_hand, limit, now).await?;
        let is_all = due.len() < slice && run_id.is_none();
        let lacking = self.prepare(&plan, due).await?;
        if let Some(kib) = lacking {
            self.wait_for_room(kib).await;
            return Ok(Found::Something);
        }
        Ok(if is_all {
            Found::Nothing
        } else {
            Found::Something
        })
    }

    /// What calls have in common; none while the export's secrets can't be opened.
    fn planned(&mut self, export: Stored, now: DateTime<Utc>) -> Option<Arc<Plan>> {
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
                self.unusable = Some((export.updated_at, now + UNUSABLE));
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

    /// Decides what is called and what is skipped. Gives the KiB of a body that has no room: what
    /// comes after it waits where it was, too.
    async fn prepare(&mut self, plan: &Arc<Plan>, due: Vec<Due>) -> sqlx::Result<Option<usize>> {
        let mut lacking = None;
        if due.is_empty() {
            return Ok(lacking);
        }
        // Held until the bodies have their room: before that nobody knows how much it is. They don't
        // wait for it, or others could load nothing.
        let loading = self.shared.loads.wait(self.row.store_id, 1).await;
        let mut snapshots = self.load(&due).await?;
        let latest = self.latest(plan, &due).await?;
        let mut doubted = Vec::new();
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
                        called_as: plan.export.updated_at,
                        came,
                    };
                    self.note(record_id, Some(settled));
                }
                Ok(call) => {
                    let kib = kib(call.body.len());
                    let Some(room) = self.room(kib) else {
                        self.in_hand.remove(&record_id);
                        lacking = Some(kib);
                        break;
                    };
                    // Without an entry nothing can be skipped.
                    if latest.contains_key(&record_id) && !due.unsure {
                        doubted.push(record_id);
                    }
                    self.ready.push_back(Ready {
                        due,
                        external_id,
                        call,
                        room,
                    });
                }
            }
        }
        self.reserved = None;
        drop(loading);
        self.doubt(&doubted).await?;
        Ok(lacking)
    }

    /// Notes that these records are about to be called.
    async fn doubt(&mut self, record_ids: &[Uuid]) -> sqlx::Result<()> {
        if record_ids.is_empty() {
            return Ok(());
        }
        let Leased { store_id, id, .. } = self.row;
        let now = self.state.clock.now();
        let mut transaction = Transaction::begin(&self.state.pool).await?;
        let connection = transaction.connection();
        match deliveries::doubt(connection, store_id, id, record_ids, now).await {
            Ok(()) => transaction.commit().await,
            Err(error) => {
                transaction.rollback().await;
                Err(error)
            }
        }
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

    /// Room for a body, if there is some now.
    fn room(&mut self, kib: usize) -> Option<Share> {
        let reserved = self.reserved.as_mut();
        let reserved = reserved.and_then(|reserved| reserved.split(kib));
        reserved.or_else(|| self.shared.bodies.take(self.row.store_id, kib))
    }

    /// Waits for room for a body that is not held meanwhile.
    async fn wait_for_room(&mut self, kib: usize) {
        let patience = if self.calls.is_empty() {
            PATIENCE
        } else {
            LOOK_EVERY
        };
        let room = self.shared.bodies.wait(self.row.store_id, kib);
        self.reserved = tokio::time::timeout(patience, room).await.ok();
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
                    // All else is as it is now, whatever the last look saw.
                    let unusable = self.unusable.filter(|(at, _)| *at == export.updated_at);
                    match next.map(|next| unusable.map_or(next, |(_, until)| until.max(next))) {
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
    connection: &mut crate::database::Connection,
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

/// What a body takes of the room.
fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1_024).clamp(1, MOST_BODIES_KIB)
}

/// What a call needs.
struct Caller {
    state: State,
    shared: Shared,
    lease: Arc<Lease>,
    pace: Arc<Pace>,
    plan: Arc<Plan>,
}

impl Caller {
    /// Makes a call; none when somebody else may make it before this one had ended, or when nobody
    /// could look for its receiver.
    async fn call(self, ready: Ready) -> Option<Settled> {
        let shared = &self.shared;
        let store_id = self.plan.export.store_id;
        let turn = async {
            let place = shared.calls.wait(store_id, 1).await;
            let _door = shared.door.wait(store_id, 1).await;
            shared.turns.until_ready().await;
            place
        };
        let place = tokio::select! {
            place = turn => place,
            () = self.lease.over() => return None,
        };
        if !self.lease.lasts() {
            return None;
        }
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
        let began = self.state.clock.now();
        let request = self.plan.request(url, &key, body, began);
        let called_at = Instant::now();
        let answer = self.shared.client.call(store_id, request).await;
        drop((place, room));
        if answer == Err(CallError::NoTurn) {
            return None;
        }
        let time = called_at.elapsed();
        Some(Settled {
            due,
            external_id,
            called_as: self.plan.export.updated_at,
            came: self.came(answer, began, time, key, content),
        })
    }

    fn came(
        &self,
        answer: Result<Answer, CallError>,
        began: DateTime<Utc>,
        time: Duration,
        key: String,
        content: [u8; 32],
    ) -> Came {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if !matches!(error, CallError::Refused(_)) {
                    self.pace.note_silence();
                }
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
            self.pace.note_success(time);
            return Came::Sent {
                key,
                content,
                status,
                entry_id: self.state.clock.new_id(),
            };
        }
        self.pace.note_refusal(time);
        let now = self.state.clock.now();
        let asked = match answer.retry_after {
            Some(retry_after) => Some(schedule::asked(retry_after, now)),
            None if [429, 503].contains(&number) => Some(self.pace.note_busy(began, now)),
            None => None,
        };
        Came::Failed {
            code: format!("http_{number}"),
            status: Some(status),
            asked,
        }
    }
}
