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
//! given to queues in the order in which they ask.
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
//! **Turns.** Single writes may use all lanes or, where Postgres shares few processors with them, only
//! some ([`Config::singles_at_once`](crate::config::Config::singles_at_once)): a second batch beside
//! the first one would halve both, and what a batch costs as such comes twice. A batch that is held up
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
//! is read. A burst may fill it; where it stays long, fewer are let in ([`Crowd`]). A caller who hangs
//! up takes nothing back: what is queued is written.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::DefaultHashBuilder;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Resource;
use super::write::{self, Answers, Detail, Ending, LockWait, Options, Outcome, Write, Written};
use crate::database::{self, Database};
use crate::edge::Limits;
use crate::error::Error;
use crate::state::{ACQUIRE_TIMEOUT, State};
use crate::vitals::{self, Pulse};

/// Bytes after which a batch takes no more writes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of single writes that may wait.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// How long a batch of single writes keeps others from beginning where they take turns. One that
/// takes longer waits for a lock or a disk, and leaves the processors to them.
const TURN: Duration = Duration::from_millis(50);
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
struct AsItIs(u64);

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
    under_way: Mutex<Keys>,
    /// Told whenever keys are free again.
    landed: Notify,
    /// Single writes that wait, and their bytes.
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    crowd: Mutex<Crowd>,
    /// How many single writes may wait, by what the crowd says now.
    most_waiting: AtomicUsize,
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
        let state = {
            let _here = thread.enter();
            state.with_own_connections(database::Limits {
                max_connections: config.lane_connections(),
                acquire: ACQUIRE_TIMEOUT,
                statement: STATEMENT,
            })
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
            under_way: Mutex::default(),
            landed: Notify::new(),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            limits: limits.clone(),
            crowd: Mutex::new(Crowd::new(config.write_batch, config.write_queue)),
            most_waiting: AtomicUsize::new(config.write_queue as usize),
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

    /// Whether there is room for another write; asked before its body is read.
    ///
    /// # Errors
    /// `Overloaded` when as many wait as may.
    pub fn check(&self) -> Result<(), Error> {
        let full = self.depth() >= self.0.most_waiting.load(Ordering::Relaxed)
            || self.0.waiting_bytes.load(Ordering::Relaxed) >= QUEUE_BYTES;
        if full { Err(Error::Overloaded) } else { Ok(()) }
    }

    /// Single writes that wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// A place in the queue, for a write of so many bytes.
    fn place(&self, bytes: usize) -> Result<Place, Error> {
        // Counted from before it is checked, so that a race can't let two in.
        let place = Place {
            shared: Arc::clone(&self.0),
            bytes,
        };
        let waiting = self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = self.0.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A lone write of any size is let in.
        let too_many_bytes = waiting > 0 && waiting_bytes + bytes > QUEUE_BYTES;
        if waiting >= self.0.most_waiting.load(Ordering::Relaxed) || too_many_bytes {
            return Err(Error::Overloaded);
        }
        Ok(place)
    }

    /// Looks at how many wait, when a batch is about to be taken from them.
    fn look_at_the_crowd(&self) {
        let crowd = self.0.crowd.lock();
        let mut crowd = crowd.unwrap_or_else(PoisonError::into_inner);
        let most = crowd.after(self.depth(), Instant::now());
        self.0.most_waiting.store(most, Ordering::Relaxed);
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

    fn under_way(&self) -> MutexGuard<'_, Keys> {
        // A set of numbers is whole at any time.
        let keys = self.0.under_way.lock();
        keys.unwrap_or_else(PoisonError::into_inner)
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

/// One write in the queue's count, until it is dropped.
struct Place {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        let bytes = &self.shared.waiting_bytes;
        bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The keys of a batch at the database, until it is dropped.
struct Flight {
    lanes: Lanes,
    keys: Vec<LaneKey>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut under_way = self.lanes.under_way();
        for key in &self.keys {
            under_way.remove(key);
        }
        drop(under_way);
        self.lanes.0.landed.notify_waiters();
    }
}

/// The way into the lanes for one resource. Its queue ends when the last clone is dropped and what
/// was queued is written.
pub struct Writer<R: Resource>(Arc<Way<R>>);

struct Way<R: Resource> {
    lanes: Lanes,
    /// Unbounded as such: single writes are bounded by [`Place`], bulk by the number of bulk
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
            singles: VecDeque::new(),
            bulk: VecDeque::new(),
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
        let place = self.0.lanes.place(write.bytes)?;
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
    singles: VecDeque<Entry<R>>,
    bulk: VecDeque<Entry<R>>,
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
            let turn = if self.bulk.is_empty() {
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
            lanes.look_at_the_crowd();
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
        self.singles.is_empty() && self.bulk.is_empty()
    }

    fn arrive(&mut self, entries: Vec<Entry<R>>) {
        for entry in entries {
            match entry.class {
                Class::Single => self.singles.push_back(entry),
                Class::Slice | Class::Whole => self.bulk.push_back(entry),
            }
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
        for queue in [&mut self.singles, &mut self.bulk] {
            while let Some(entry) = queue.pop_front_if(|entry| entry.expires <= now) {
                // Who hung up doesn't want to know.
                let _ = entry.reply.send(Err(Error::Overloaded));
            }
        }
    }

    /// What goes to the database next, with its keys reserved: as much as has no key that is under
    /// way, or that somebody earlier waits for. Single writes need a turn.
    fn next_batch(&mut self, has_turn: bool) -> Option<(Batch<R>, Flight)> {
        let mut under_way = self.lanes.under_way();
        let most = self.lanes.0.most_batch;
        let mut awaited = Keys::default();
        let mut take = |queue| Batch::take(queue, most, &under_way, &mut awaited);
        let batch = match (has_turn, self.bulk_is_next) {
            (false, _) => take(&mut self.bulk),
            (true, true) => take(&mut self.bulk).or_else(|| take(&mut self.singles)),
            (true, false) => take(&mut self.singles).or_else(|| take(&mut self.bulk)),
        };
        let mut batch = batch?;
        self.bulk_is_next = batch.class == Class::Single;
        let keys = std::mem::take(&mut batch.keys);
        under_way.extend(&keys);
        let lanes = self.lanes.clone();
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
        let turn = turn.filter(|_| !is_bulk);
        self.lanes.0.state.tasks.spawn(async move {
            let _flight = flight;
            let _under_way = pulse.begin();
            let mut writing = std::pin::pin!(batch.write(&lanes, &pulse, metrics));
            if is_bulk {
                // Bulk that waits for a lost database must not keep others from hearing of it.
                if tokio::time::timeout(SHORT, &mut writing).await.is_ok() {
                    return;
                }
                drop(lane);
                writing.await;
            } else {
                if tokio::time::timeout(TURN, &mut writing).await.is_err() {
                    drop(turn);
                    writing.await;
                }
                drop(lane);
            }
        });
    }
}

/// What goes to the database as one transaction: the writes of one or many callers, in order of
/// arrival.
struct Batch<R: Resource> {
    class: Class,
    writes: Vec<Write<R>>,
    keys: Vec<LaneKey>,
    bytes: usize,
    patience: Duration,
    callers: Vec<Caller<R>>,
}

/// Who gets the next so many answers of a batch.
struct Caller<R: Resource> {
    writes: usize,
    since: Instant,
    reply: oneshot::Sender<Result<Answers<R>, Error>>,
}

impl<R: Resource> Batch<R> {
    /// Takes what can go together from the front of a queue. Who has to wait stays in its place, and
    /// its keys are noted, so that nobody overtakes it.
    fn take(
        queue: &mut VecDeque<Entry<R>>,
        most: usize,
        under_way: &Keys,
        awaited: &mut Keys,
    ) -> Option<Self> {
        let mut batch: Option<Self> = None;
        let mut waiting = Vec::new();
        while let Some(entry) = queue.pop_front_if(|entry| has_room(batch.as_ref(), entry, most)) {
            let taken = |key: &LaneKey| under_way.contains(key) || awaited.contains(key);
            if entry.keys.iter().any(taken) {
                awaited.extend(&entry.keys);
                waiting.push(entry);
            } else {
                batch
                    .get_or_insert_with(|| Self::of(entry.class))
                    .add(entry);
            }
        }
        for entry in waiting.into_iter().rev() {
            queue.push_front(entry);
        }
        batch
    }

    fn of(class: Class) -> Self {
        Self {
            class,
            writes: Vec::new(),
            keys: Vec::new(),
            bytes: 0,
            patience: Duration::ZERO,
            callers: Vec::new(),
        }
    }

    fn add(&mut self, entry: Entry<R>) {
        self.bytes += entry.bytes;
        self.patience = self.patience.max(entry.patience.for_the_database());
        self.callers.push(Caller {
            writes: entry.writes.len(),
            since: entry.since,
            reply: entry.reply,
        });
        self.writes.extend(entry.writes);
        self.keys.extend(entry.keys);
        // It waits no more: its place goes to another one.
        drop(entry.place);
    }

    /// Writes it and answers everybody.
    async fn write(self, lanes: &Lanes, pulse: &Pulse, metrics: Metrics) {
        let options = Options {
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
        };
        let written = Box::pin(write::write(&lanes.0.state, &self.writes, options)).await;
        pulse.note(!written.as_ref().is_err_and(Error::is_of_the_database));
        match written {
            Ok(answers) => {
                metrics.count_outcomes(&answers);
                hand_out(answers, self.callers);
            }
            Err(error) => refuse(error, self.callers),
        }
    }
}

/// Whether an entry belongs into this batch.
fn has_room<R: Resource>(batch: Option<&Batch<R>>, entry: &Entry<R>, most: usize) -> bool {
    let Some(batch) = batch else { return true };
    batch.class == entry.class
        && batch.class != Class::Whole
        && batch.writes.len() + entry.writes.len() <= most
        && batch.bytes + entry.bytes <= BATCH_BYTES
}

/// Gives each caller its own part of the answers.
fn hand_out<R: Resource>(answers: Answers<R>, callers: Vec<Caller<R>>) {
    let mut answers = answers.into_iter();
    for caller in callers {
        let own: Answers<R> = answers.by_ref().take(caller.writes).collect();
        // Who hung up doesn't want to know.
        let _ = caller.reply.send(Ok(own));
    }
}

/// Tells everybody of what kept the batch from being written.
fn refuse<R: Resource>(error: Error, callers: Vec<Caller<R>>) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
