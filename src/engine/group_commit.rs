//! Group commit: what many callers ask for at the same time is written as one transaction.
//!
//! A commit costs the same for one row as for two hundred. So writes don't go to the database each
//! by itself: they wait in a queue for a *lane* to the database, and whenever one of the few lanes is
//! free, all that waits is written there as one batch and each caller is answered. Nothing waits for
//! company: a lone write goes at once, and a batch is as large as what came while the lanes were
//! taken.
//!
//! ```text
//!  time ──────────────────────────────────────────────────────────────────────▶
//!  caller a   ├ POST W-1 ──────────────────────────┤ 201
//!  caller b       ├ POST W-2 ──────────────────────────┤ 201
//!  caller c          ├ PATCH W-1 ───────────────────────────────────────┤ 200
//!  caller d             ├ POST W-3 ──────────────────────────────────────────┤ 201
//!  lane 1     [ batch: a                          ][ batch: c            ]
//!  lane 2         [ batch: b                          ][ batch: d            ]
//!                   read│apply│store, with events│commit│answer
//! ```
//!
//! **Order.** Two batches that are at the database at the same time have no key in common, neither of
//! a record nor of a customer that a record carries along ([`Resource::lane_keys`]). A write whose
//! key is under way waits for that batch to end, and every later write of the key waits behind it. So
//! the writes of one key are applied in the order in which they came, and two lanes of one process
//! don't meet in one row. (Where they do all the same, because two keys turn out to name one
//! customer, it is as with two processes: the slower one is undone and written again.) Within a batch
//! `engine/write` applies the writes one after the other in memory: the second write of a key sees
//! the first. Each resource has its own queue, since its records are of their own type; lanes are
//! given to queues in the order in which they ask. What waits for a key is known to all queues, and
//! whoever came later leaves the key to it.
//!
//! **Why each answer is right.** An answer is given when its batch is committed, or when nothing had
//! to be written. Then it is known that every row of the batch still had the version that was read
//! (the compare-and-swap of `engine/write`), that the events are stored with the rows, and that all
//! of it is durable. So there was one moment at which all writes of the batch happened one after the
//! other, in the order of their answers: for what changed the commit, for the rest the read, both
//! within the time of each caller's request. Answers and writes are paired by their places in the
//! batch, which never change: retries and halves keep the order.
//!
//! **201 once a key.** A write answers 201 when it was decided on the absence of its key and its row
//! was inserted with that decision. The key is unique in the database, so of two processes that
//! both saw it absent one inserts; the other's insert finds a row where it read none, writes
//! nothing, and its whole batch is undone and decided again, on what is there now. Within a batch the
//! second write of a new key sees the first one's record. A commit whose answer is lost is looked up
//! by its events' ids before anything is written again, and then answers what it would have answered.
//!
//! **One bad row** must not fail its neighbours: a batch that Postgres refuses for a value is written
//! again in halves, until the row stands alone.
//!
//! **One held row** must not hold up its neighbours, either. A lane waits for a lock of somebody else
//! for [`Limits::lock_wait`]; then the writes that the lock is about keep their keys and are tried
//! again beside the lanes, and the others are written at once ([`held_up`]).
//!
//! **Stores** take turns: a batch takes one write of each store that waits, then the next one of each,
//! and a full queue has room for a store that has less than its share of it ([`Places`]).
//!
//! **Turns.** Single writes may use all lanes or, where Postgres shares few processors with them, only
//! some ([`Config::singles_at_once`](crate::config::Config::singles_at_once)): a second batch beside
//! the first one would halve both, and what a batch costs as such comes twice. A batch that takes long
//! gives its turn back. Bulk brings batches that are large anyway and uses all lanes.
//!
//! **Bulk** takes turns with single writes. A bulk request has at most two slices in the queue, so it
//! waits for its own answers before it asks for more. Only bulk waits long for a lost database, and
//! it gives its lane back meanwhile.
//!
//! **A thread of their own.** Queues and batches run on one thread beside those of the requests, with
//! database connections of their own. A batch is a handful of short steps, each of which waits for
//! Postgres; among hundreds of requests, each step would also wait for its turn at the processor.
//!
//! **Bounds.** The queue is bounded in writes, bytes and age. A caller finds it full before its body
//! is read. A burst may fill it; where it stays long, fewer are let in. A caller who hangs up takes
//! nothing back: what is queued is written.

mod held_up;
mod keys;
mod places;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Resource;
use super::failure::Failure;
use super::write::{self, Answers, Detail, Ending, LockWait, Options, Outcome, Write, Written};
use crate::database::{self, Database};
use crate::edge::Limits;
use crate::error::Error;
use crate::state::{ACQUIRE_TIMEOUT, State};
use crate::turns::{Turns, Verdict};
use crate::vitals::{self, Pulse};

pub use self::keys::LaneKey;
use self::keys::{Claimant, Look, Reserved};
use self::places::{Place, Places};

/// Bytes after which a batch takes no more writes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How long a batch of single writes keeps others from beginning where they take turns. One that
/// takes longer waits for a lock or a disk, and leaves the processors to them.
const TURN: Duration = Duration::from_millis(50);
/// When Postgres ends a transaction of a lane that asks nothing: its process was stopped or cut off,
/// and its locks keep the others from their keys.
const IDLE_TRANSACTION: &str = "5s";
/// How long a statement of a batch may take, besides what each of its writes adds. Others wait for
/// the lane meanwhile, so it is far less than elsewhere.
const STATEMENT: Duration = Duration::from_secs(3);
/// How often a queue looks for writes that have waited too long.
const EXPIRY: Duration = Duration::from_millis(250);

/// How long a caller waits for its batch to begin, and for a database that went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Whoever waits for one answer: [`Limits::queue_timeout`], 2 s.
    Short,
    /// Streams, which hold their client back meanwhile: 30 s each.
    Long,
}

/// How long single writes wait for a database that went away, and how long bulk does so in a lane.
const SHORT: Duration = Duration::from_secs(2);
/// How long streams wait for anything.
const LONG: Duration = Duration::from_secs(30);

impl Patience {
    /// For a batch to begin.
    #[must_use]
    pub fn for_the_queue(self, limits: &Limits) -> Duration {
        match self {
            Self::Short => limits.queue_timeout,
            Self::Long => LONG,
        }
    }

    /// For a database that went away.
    #[must_use]
    pub fn for_the_database(self) -> Duration {
        match self {
            Self::Short => SHORT,
            Self::Long => LONG,
        }
    }
}

/// What the queues of all resources share: the lanes to the database, the keys that are under way
/// there, and how much waits.
#[derive(Clone)]
pub struct Lanes(Arc<Shared>);

struct Shared {
    /// The lanes' thread.
    thread: Handle,
    /// Cancelled when nobody can write any more; the thread then ends.
    _ended: DropGuard,
    /// Cancelled when the thread has ended.
    closed: CancellationToken,
    /// The service's state, with the lanes' connections for its pool.
    state: State,
    /// One permit a lane, given in order of asking.
    lanes: Arc<Semaphore>,
    /// One permit a lane that single writes may use.
    turns: Arc<Semaphore>,
    /// The one permit to try what is held up again.
    again: Arc<Semaphore>,
    reserved: Mutex<Reserved>,
    /// Told whenever keys are free again.
    landed: Notify,
    /// Single writes that wait.
    places: Arc<Places>,
    limits: Limits,
    most_batch: usize,
}

impl Lanes {
    /// Starts the lanes' thread, with as many lanes as the settings say.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(state: &State, limits: &Limits) -> std::io::Result<Self> {
        describe_metrics();
        let config = &state.config;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = runtime.handle().clone();
        let lock_wait = format!("{}ms", limits.lock_wait.as_millis());
        let options = state.pool.options().clone().options([
            ("lock_timeout", lock_wait.as_str()),
            ("idle_in_transaction_session_timeout", IDLE_TRANSACTION),
        ]);
        let connections = database::Limits {
            max_connections: config.lane_connections(),
            acquire: ACQUIRE_TIMEOUT,
            statement: STATEMENT,
        };
        let state = State {
            pool: {
                let _here = thread.enter();
                Database::new(options, connections)
            },
            ..state.clone()
        };
        let (ended, closed) = (CancellationToken::new(), CancellationToken::new());
        let (end, close, pool) = (ended.clone(), closed.clone(), state.pool.clone());
        std::thread::Builder::new()
            .name("keyfold-lanes".to_owned())
            .spawn(move || {
                let _closed = close.drop_guard();
                runtime.block_on(async {
                    end.cancelled().await;
                    pool.close();
                });
            })?;
        Ok(Self(Arc::new(Shared {
            thread,
            _ended: ended.drop_guard(),
            closed,
            lanes: Arc::new(Semaphore::new(config.lanes() as usize)),
            turns: Arc::new(Semaphore::new(config.singles_at_once() as usize)),
            again: Arc::new(Semaphore::new(1)),
            reserved: Mutex::default(),
            landed: Notify::new(),
            places: Places::new(config.write_batch, config.write_queue),
            limits: limits.clone(),
            most_batch: config.write_batch as usize,
            state,
        })))
    }

    /// Cancelled when the lanes have written everything and closed their connections, after the last
    /// clone and the last [`Writer`] were dropped.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.0.closed.clone()
    }

    /// The lanes' connections.
    #[must_use]
    pub fn pool(&self) -> &Database {
        &self.0.state.pool
    }

    /// Whether there is room for another write of a store; asked before its body is read.
    ///
    /// # Errors
    /// `Overloaded` when as many wait as may, and the store has its share of them.
    pub fn check(&self, store_id: i64) -> Result<(), Error> {
        self.0.places.check(store_id)
    }

    /// Single writes that wait for a batch.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.places.waiting()
    }

    /// A lane, in order of asking.
    async fn enter(&self) -> OwnedSemaphorePermit {
        let lane = Arc::clone(&self.0.lanes).acquire_owned().await;
        lane.expect("the semaphore is never closed")
    }

    /// A turn of single writes, in order of asking.
    async fn turn(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.0.turns).acquire_owned().await;
        turn.expect("the semaphore is never closed")
    }

    /// A turn of single writes, if there is one now.
    fn turn_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.turns).try_acquire_owned().ok()
    }

    /// The right to try again what is held up, in order of asking.
    async fn enter_again(&self) -> OwnedSemaphorePermit {
        let again = Arc::clone(&self.0.again).acquire_owned().await;
        again.expect("the semaphore is never closed")
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        // Sets of numbers are whole at any time.
        let reserved = self.0.reserved.lock();
        reserved.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys of a batch at the database, until it is dropped.
struct Flight {
    lanes: Lanes,
    keys: Vec<LaneKey>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.lanes.reserved().give_back(&self.keys);
        self.lanes.0.landed.notify_waiters();
    }
}

/// The way into the lanes for one resource. Its queue ends when the last clone is dropped and what
/// was queued is written.
pub struct Writer<R: Resource>(Arc<Way<R>>);

struct Way<R: Resource> {
    lanes: Lanes,
    /// Unbounded as such: single writes are bounded by [`Places`], bulk by the number of bulk
    /// requests.
    queue: mpsc::UnboundedSender<Vec<Entry<R>>>,
}

impl<R: Resource> Clone for Writer<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What came of a slice of a bulk request.
pub struct Slice<R: Resource> {
    /// One a write, in order.
    pub answers: Answers<R>,
    /// What kept some of them from being written, for a reason that is none of theirs.
    pub failure: Option<Arc<Error>>,
}

impl<R: Resource> Default for Slice<R> {
    fn default() -> Self {
        Self {
            answers: Vec::new(),
            failure: None,
        }
    }
}

impl<R: Resource> Slice<R> {
    /// A slice of so many writes that never came to the queue.
    #[must_use]
    pub fn failed(writes: usize, error: Error) -> Self {
        let (mut slice, error) = (Self::default(), Arc::new(error));
        for _ in 0..writes {
            slice.fail(Error::Shared(Arc::clone(&error)));
        }
        slice
    }

    fn fail(&mut self, error: Error) {
        let error = match error {
            Error::Shared(error) => error,
            error => Arc::new(error),
        };
        self.answers.push(Err(Error::Shared(Arc::clone(&error))));
        // That something may be stored is the worse news.
        let is_worse = matches!(error.itself(), Error::OutcomeUnknown(_));
        if self.failure.is_none() || is_worse {
            self.failure = Some(error);
        }
    }
}

/// What one caller asked for in one go.
struct Entry<R: Resource> {
    store_id: i64,
    writes: Vec<Write<R>>,
    keys: Vec<LaneKey>,
    bytes: usize,
    class: Class,
    since: Instant,
    expires: Instant,
    patience: Patience,
    place: Option<Place>,
    reply: oneshot::Sender<Result<Answers<R>, Error>>,
}

/// Whose writes may share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Single writes, among themselves.
    Single,
    /// Writes of bulk requests, among themselves.
    Slice,
    /// All or nothing: alone.
    Whole,
}

impl<R: Resource> Writer<R> {
    /// Starts the queue of one resource.
    #[must_use]
    pub fn start(lanes: &Lanes) -> Self {
        let (queue, arrivals) = mpsc::unbounded_channel();
        let reader = Queue {
            lanes: lanes.clone(),
            arrivals,
            singles: Waiting::new(lanes),
            bulk: Waiting::new(lanes),
            bulk_is_next: false,
            pulse: lanes.0.state.vitals.register(R::PATH),
            metrics: Metrics::of::<R>(),
        };
        let shared = &lanes.0;
        let pulse = reader.pulse.clone();
        let reader = Arc::new(tokio::sync::Mutex::new(reader));
        // What waits outlives a panic.
        let run = move || {
            let reader = Arc::clone(&reader);
            async move { reader.lock().await.run().await }
        };
        let run = vitals::supervise(pulse, run);
        shared.state.tasks.spawn_on(run, &shared.thread);
        Self(Arc::new(Way {
            lanes: lanes.clone(),
            queue,
        }))
    }

    /// Most writes of one batch.
    #[must_use]
    pub fn most_batch(&self) -> usize {
        self.0.lanes.0.most_batch
    }

    /// Writes one record.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full or too slow; what the write came to.
    pub async fn single(&self, write: Write<R>) -> Result<Written<R>, Error> {
        let places = &self.0.lanes.0.places;
        let place = places.take(write.store_id, write.bytes)?;
        let answers = self
            .enter(Class::Single, vec![write], Patience::Short, Some(place))
            .await?;
        let only = answers.into_iter().next();
        only.unwrap_or_else(|| Err(Error::internal("a write got no answer")))
    }

    /// Writes a slice of a bulk request. It is in the queue when this returns, write by write: those
    /// whose customer is under way wait, and the others pass.
    pub fn slice(
        &self,
        writes: Vec<Write<R>>,
        patience: Patience,
    ) -> impl Future<Output = Slice<R>> + use<R> {
        let entry = |write| self.entry(Class::Slice, vec![write], patience, None);
        let (entries, queued): (Vec<_>, Vec<_>) = writes.into_iter().map(entry).unzip();
        // All at once, so that nothing of it begins without the rest.
        self.queue(entries);
        async move {
            let mut slice = Slice::default();
            for answer in queued {
                match answer_of(answer).await {
                    Ok(answers) => slice.answers.extend(answers),
                    Err(error) => slice.fail(error),
                }
            }
            slice
        }
    }

    /// Writes all of it in one transaction, or nothing.
    ///
    /// # Errors
    /// What kept it from being written.
    pub async fn whole(&self, writes: Vec<Write<R>>) -> Result<Answers<R>, Error> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        self.enter(Class::Whole, writes, Patience::Short, None)
            .await
    }

    /// Puts writes into the queue and waits for their answers.
    async fn enter(
        &self,
        class: Class,
        writes: Vec<Write<R>>,
        patience: Patience,
        place: Option<Place>,
    ) -> Result<Answers<R>, Error> {
        let (entry, answer) = self.entry(class, writes, patience, place);
        self.queue(vec![entry]);
        answer_of(answer).await
    }

    fn entry(
        &self,
        class: Class,
        writes: Vec<Write<R>>,
        patience: Patience,
        place: Option<Place>,
    ) -> (Entry<R>, Answer<R>) {
        let (reply, answer) = oneshot::channel();
        let since = Instant::now();
        let entry = Entry {
            store_id: writes.first().map_or(0, |write| write.store_id),
            keys: writes.iter().flat_map(Write::lane_keys).collect(),
            bytes: writes.iter().map(|write| write.bytes).sum(),
            writes,
            class,
            since,
            expires: since + patience.for_the_queue(&self.0.lanes.0.limits),
            patience,
            place,
            reply,
        };
        (entry, answer)
    }

    fn queue(&self, entries: Vec<Entry<R>>) {
        // Where the queue has ended, the entries are dropped, and their answers with them.
        let _ = self.0.queue.send(entries);
    }
}

type Answer<R> = oneshot::Receiver<Result<Answers<R>, Error>>;

async fn answer_of<R: Resource>(answer: Answer<R>) -> Result<Answers<R>, Error> {
    let died = |_| Error::internal("the batch of this write died");
    answer.await.map_err(died)?
}

/// The queue of one resource: the only one who reads it.
struct Queue<R: Resource> {
    lanes: Lanes,
    arrivals: mpsc::UnboundedReceiver<Vec<Entry<R>>>,
    singles: Waiting<R>,
    bulk: Waiting<R>,
    /// Single writes and bulk take turns while both wait.
    bulk_is_next: bool,
    pulse: Pulse,
    metrics: Metrics,
}

impl<R: Resource> Queue<R> {
    /// Batch after batch until nobody can ask any more and everything is on its way.
    async fn run(&mut self) {
        let lanes = self.lanes.clone();
        loop {
            if self.is_empty() {
                let Some(entries) = self.arrivals.recv().await else {
                    return;
                };
                self.arrive(entries);
            }
            let turn = if self.bulk.entries.is_empty() {
                Some(self.while_waiting(lanes.turn()).await)
            } else {
                lanes.turn_now()
            };
            let lane = self.while_waiting(lanes.enter()).await;
            // Listened for from before the look at the keys, so that no landing is missed.
            let mut landed = std::pin::pin!(lanes.0.landed.notified());
            landed.as_mut().enable();
            self.take_arrivals();
            self.expire();
            lanes.0.places.look_at_the_crowd();
            match self.next_batch(turn.is_some()) {
                Some((batch, flight)) => self.begin(batch, flight, lane, turn),
                None if self.is_empty() => {}
                None => {
                    drop((lane, turn));
                    self.more_or(landed).await;
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.singles.entries.is_empty() && self.bulk.entries.is_empty()
    }

    fn arrive(&mut self, entries: Vec<Entry<R>>) {
        for entry in entries {
            let waiting = match entry.class {
                Class::Single => &mut self.singles,
                Class::Slice | Class::Whole => &mut self.bulk,
            };
            waiting.entries.push(entry.store_id, entry);
        }
    }

    /// Everything that has come by now.
    fn take_arrivals(&mut self) {
        while let Ok(entries) = self.arrivals.try_recv() {
            self.arrive(entries);
        }
    }

    /// Waits for something, and sees to it that nobody waits too long meanwhile.
    async fn while_waiting<T>(&mut self, wanted: impl Future<Output = T>) -> T {
        let mut wanted = std::pin::pin!(wanted);
        loop {
            tokio::select! {
                biased;
                found = &mut wanted => return found,
                () = tokio::time::sleep(EXPIRY) => {
                    self.take_arrivals();
                    self.expire();
                }
            }
        }
    }

    /// Everything that waits has a key that is under way: until that changes, or something else
    /// comes.
    async fn more_or(&mut self, landed: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = landed => {}
            Some(entries) = self.arrivals.recv() => self.arrive(entries),
            () = tokio::time::sleep(EXPIRY) => {}
        }
    }

    /// Refuses what has waited too long: nothing was done of it.
    fn expire(&mut self) {
        let now = Instant::now();
        for waiting in [&mut self.singles, &mut self.bulk] {
            let expired = waiting.entries.extract(|entry| entry.expires <= now);
            if !expired.is_empty() {
                self.lanes.reserved().forget(waiting.claimant);
                self.lanes.0.landed.notify_waiters();
            }
            for entry in expired {
                let refusal = if self.pulse.is_failing() {
                    Error::DatabaseUnavailable("the writes before it have failed".into())
                } else {
                    Error::Overloaded
                };
                // Who hung up doesn't want to know.
                let _ = entry.reply.send(Err(refusal));
            }
        }
    }

    /// What goes to the database next, with its keys reserved: as much as has no key that is under
    /// way, or that somebody earlier waits for. Single writes need a turn.
    fn next_batch(&mut self, has_turn: bool) -> Option<(Batch<R>, Flight)> {
        let lanes = self.lanes.clone();
        let mut reserved = lanes.reserved();
        let most = lanes.0.most_batch;
        let mut take = |waiting: &mut Waiting<R>| waiting.take(most, &mut reserved);
        let batch = match (has_turn, self.bulk_is_next) {
            (false, _) => take(&mut self.bulk),
            (true, true) => take(&mut self.bulk).or_else(|| take(&mut self.singles)),
            (true, false) => take(&mut self.singles).or_else(|| take(&mut self.bulk)),
        };
        drop(reserved);
        let mut batch = batch?;
        self.bulk_is_next = batch.class == Class::Single;
        let keys = std::mem::take(&mut batch.keys);
        Some((batch, Flight { lanes, keys }))
    }

    /// Lets a batch be written in a task of its own: the next one may begin beside it, and a panic
    /// ends nothing but the batch.
    fn begin(
        &self,
        batch: Batch<R>,
        flight: Flight,
        lane: OwnedSemaphorePermit,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        self.metrics.begins(&batch);
        let (lanes, metrics) = (self.lanes.clone(), self.metrics.clone());
        let pulse = self.pulse.clone();
        let is_bulk = batch.class != Class::Single;
        let (mut lane, mut turn) = (Some(lane), turn.filter(|_| !is_bulk));
        self.lanes.0.state.tasks.spawn(async move {
            let under_way = pulse.begin();
            let mut writing = std::pin::pin!(batch.write(&lanes, &pulse, &metrics));
            let patience = if is_bulk { SHORT } else { TURN };
            let held_up = match tokio::time::timeout(patience, &mut writing).await {
                Ok(held_up) => held_up,
                // Bulk that waits for a lost database must not keep others from hearing of it.
                Err(_) if is_bulk => {
                    drop(lane.take());
                    writing.await
                }
                Err(_) => {
                    drop(turn.take());
                    writing.await
                }
            };
            drop((lane, turn, under_way));
            if let Some((batch, lost)) = held_up {
                let last = held_up::see_through(batch, lost, flight, &lanes, &pulse, &metrics);
                Box::pin(last).await;
            }
        });
    }
}

/// Writes of one queue that wait, those of one store after the other.
struct Waiting<R: Resource> {
    entries: Turns<Entry<R>>,
    claimant: Claimant,
}

impl<R: Resource> Waiting<R> {
    fn new(lanes: &Lanes) -> Self {
        Self {
            entries: Turns::default(),
            claimant: lanes.reserved().claimant(),
        }
    }

    /// Takes what can go together, and reserves its keys. Who has to wait stays in its place.
    fn take(&mut self, most: usize, reserved: &mut Reserved) -> Option<Batch<R>> {
        if self.entries.is_empty() {
            return None;
        }
        let mut look = Look::begin(reserved, self.claimant);
        let mut room = Room::default();
        let taken = self.entries.select(|entry| {
            if !room.fits(entry, most) {
                Verdict::Enough
            } else if look.lets_go(&entry.keys, entry.since) {
                room.add(entry);
                Verdict::Take
            } else {
                Verdict::Hold
            }
        });
        let mut taken = taken.into_iter();
        let batch = taken.next().map(|first| {
            let mut batch = Batch::of(first.class);
            batch.add(first);
            taken.for_each(|entry| batch.add(entry));
            batch
        });
        look.end(batch.as_ref().map_or(&[], |batch| &batch.keys));
        batch
    }
}

/// What is in a batch so far.
#[derive(Default)]
struct Room {
    class: Option<Class>,
    writes: usize,
    bytes: usize,
}

impl Room {
    /// Whether an entry belongs into this batch.
    fn fits<R: Resource>(&self, entry: &Entry<R>, most: usize) -> bool {
        let Some(class) = self.class else { return true };
        class == entry.class
            && class != Class::Whole
            && self.writes + entry.writes.len() <= most
            && self.bytes + entry.bytes <= BATCH_BYTES
    }

    fn add<R: Resource>(&mut self, entry: &Entry<R>) {
        self.class = Some(entry.class);
        self.writes += entry.writes.len();
        self.bytes += entry.bytes;
    }
}

/// What goes to the database as one transaction: the writes of one or many callers, in order of
/// arrival.
struct Batch<R: Resource> {
    class: Class,
    writes: Vec<Write<R>>,
    keys: Vec<LaneKey>,
    patience: Duration,
    callers: Vec<Caller<R>>,
}

/// Who gets the next so many answers of a batch.
struct Caller<R: Resource> {
    writes: usize,
    since: Instant,
    /// When it is refused if a lock holds it up for so long.
    expires: Instant,
    reply: oneshot::Sender<Result<Answers<R>, Error>>,
}

impl<R: Resource> Batch<R> {
    fn of(class: Class) -> Self {
        Self {
            class,
            writes: Vec::new(),
            keys: Vec::new(),
            patience: Duration::ZERO,
            callers: Vec::new(),
        }
    }

    fn add(&mut self, entry: Entry<R>) {
        self.patience = self.patience.max(entry.patience.for_the_database());
        self.callers.push(Caller {
            writes: entry.writes.len(),
            since: entry.since,
            expires: entry.expires,
            reply: entry.reply,
        });
        self.writes.extend(entry.writes);
        self.keys.extend(entry.keys);
        // It waits no more: its place goes to another one.
        drop(entry.place);
    }

    fn options(&self) -> Options {
        Options {
            detail: match self.class {
                Class::Single => Detail::Full,
                Class::Slice | Class::Whole => Detail::Brief,
            },
            ending: match self.class {
                Class::Single | Class::Slice => Ending::Each,
                Class::Whole => Ending::Whole,
            },
            patience: self.patience,
            lock_wait: LockWait::Usual,
        }
    }

    /// Writes it and answers everybody, unless a lock holds it up: then it comes back, with the
    /// answers of a commit that got none itself.
    async fn write(
        self,
        lanes: &Lanes,
        pulse: &Pulse,
        metrics: &Metrics,
    ) -> Option<(Self, Option<Answers<R>>)> {
        let (state, options) = (&lanes.0.state, self.options());
        let mut lost = None;
        let written = Box::pin(write::attempt(state, &self.writes, options, &mut lost)).await;
        pulse.note(!written.as_ref().is_err_and(Failure::is_of_the_database));
        match written {
            Ok(answers) => {
                metrics.count_outcomes(&answers);
                hand_out(answers, self.callers);
            }
            Err(failure) if failure.is_of_a_lock() => return Some((self, lost)),
            Err(failure) => refuse(failure.into_error(), self.callers),
        }
        None
    }
}

/// Gives each caller its own part of the answers.
fn hand_out<R: Resource>(answers: Answers<R>, callers: impl IntoIterator<Item = Caller<R>>) {
    let mut answers = answers.into_iter();
    for caller in callers {
        let own: Answers<R> = answers.by_ref().take(caller.writes).collect();
        // Who hung up doesn't want to know.
        let _ = caller.reply.send(Ok(own));
    }
}

/// Tells everybody of what kept the batch from being written.
fn refuse<R: Resource>(error: Error, callers: impl IntoIterator<Item = Caller<R>>) {
    let shared = Arc::new(error);
    for caller in callers {
        let _ = caller.reply.send(Err(Error::Shared(Arc::clone(&shared))));
    }
}

/// The measures of one resource's lanes.
#[derive(Clone)]
struct Metrics {
    batch_size: metrics::Histogram,
    wait: metrics::Histogram,
    outcomes: [(Outcome, metrics::Counter); 4],
}

impl Metrics {
    fn of<R: Resource>() -> Self {
        let outcome = |outcome: Outcome| {
            let counter = metrics::counter!(
                "keyfold_write_outcomes_total",
                "resource" => R::PATH,
                "outcome" => outcome.as_str(),
            );
            (outcome, counter)
        };
        Self {
            batch_size: metrics::histogram!("keyfold_write_batch_size", "resource" => R::PATH),
            wait: metrics::histogram!("keyfold_write_wait_seconds", "resource" => R::PATH),
            outcomes: [
                Outcome::Created,
                Outcome::Updated,
                Outcome::Unchanged,
                Outcome::Stale,
            ]
            .map(outcome),
        }
    }

    fn begins<R: Resource>(&self, batch: &Batch<R>) {
        #[expect(clippy::cast_precision_loss, reason = "a batch has few writes")]
        self.batch_size.record(batch.writes.len() as f64);
        for caller in &batch.callers {
            self.wait.record(caller.since.elapsed().as_secs_f64());
        }
    }

    /// Counts what the writes came to, also for callers who are gone.
    fn count_outcomes<R: Resource>(&self, answers: &Answers<R>) {
        for (outcome, counter) in &self.outcomes {
            let is_it = |written: &&Written<R>| written.outcome == *outcome;
            let count = answers.iter().flatten().filter(is_it).count();
            counter.increment(count as u64);
        }
    }
}

fn describe_metrics() {
    use metrics::Unit;
    metrics::describe_histogram!(
        "keyfold_write_batch_size",
        "Writes that were stored as one transaction."
    );
    metrics::describe_histogram!(
        "keyfold_write_wait_seconds",
        Unit::Seconds,
        "Time that a write waited for its batch to begin."
    );
    metrics::describe_histogram!(
        "keyfold_write_commit_seconds",
        Unit::Seconds,
        "Time that the commit of a batch took, or the one statement that stores and commits it."
    );
    metrics::describe_gauge!("keyfold_write_queue_depth", "Single writes that wait.");
    metrics::describe_gauge!(
        "keyfold_write_held_up",
        "Writes whose rows somebody else has locked."
    );
    metrics::describe_counter!(
        "keyfold_write_splits_total",
        "Batches that were written again in halves, for a row that the database refused."
    );
    metrics::describe_counter!(
        "keyfold_write_retries_total",
        "Attempts at a batch after a lost race or a broken connection."
    );
    metrics::describe_counter!("keyfold_write_outcomes_total", "What writes came to.");
}
