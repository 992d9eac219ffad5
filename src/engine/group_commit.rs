//! Group commit: what many callers ask for at the same time is written as one transaction.
//!
//! A commit costs the same for one row as for two hundred. So writes don't go to the database each
//! by itself: they wait in the queue of a *lane*, and a lane takes all that waits, writes it as one
//! batch, answers each caller, and looks again. It never waits for company: a lone write goes at
//! once, and a batch is as large as what came while the one before was under way.
//!
//! ```text
//!  time ──────────────────────────────────────────────────────────────────────▶
//!  caller a   ├ POST W-1 ──────────────────────────┤ 201
//!  caller b       ├ POST W-2 ──────────────────────────────────────────┤ 201
//!  caller c          ├ PATCH W-1 ───────────────────────────────────────┤ 200
//!  lane       [ batch: a                          ][ batch: b, c        ]
//!               read│begin│store│events│commit│answer
//! ```
//!
//! **Order.** A store's writes are all in one lane, by a stable hash of its id, and a lane writes
//! one batch at a time, so writes of one key are applied in the order in which they came. Within a
//! batch `engine/write` applies them one after the other in memory: the second write of a key sees
//! the first. Each resource has its own queue, since its records are of their own type, but the
//! queues of a lane take turns in its one place at the database ([`Turn`]). So an order and a direct
//! push of its customer are never at the database at once in one process: whichever batch is later
//! reads what the earlier one left.
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
//! both saw it absent one inserts; the upsert of the other finds a row where it read none, writes
//! nothing, and its whole batch is undone and decided again, on what is there now. Within a batch the
//! second write of a new key sees the first one's record. A commit whose answer is lost is looked up
//! by its events' ids before anything is written again, and then answers what it would have answered.
//!
//! **One bad row** must not fail its neighbours: a batch that Postgres refuses for a value is written
//! again in halves, until the row stands alone.
//!
//! **Bulk** takes turns with single writes: after each slice of at most a batch they come first. A
//! bulk request has at most one slice in a lane, so it waits for its own answers before it asks for
//! more. Only bulk waits long for a lost database, and it does so outside its lane.
//!
//! **Bounds.** A lane's queue is bounded in writes, bytes and age. A caller finds it full before its
//! body is read. A caller who hangs up takes nothing back: what is queued is written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

use super::Resource;
use super::write::{self, Answers, Detail, Ending, Options, Outcome, Write, Written};
use crate::config::Config;
use crate::error::Error;
use crate::state::State;

/// Bytes after which a batch takes no more writes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that may wait in a lane.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// How often a lane looks for writes that have waited too long.
const EXPIRY: Duration = Duration::from_millis(250);

/// How long a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For its batch to begin.
    pub queue: Duration,
    /// For a database that went away.
    pub database: Duration,
}

impl Patience {
    /// Of whoever waits for one answer.
    pub const SHORT: Self = Self {
        queue: Duration::from_secs(5),
        database: Duration::from_secs(2),
    };
    /// Of streams, which hold their client back meanwhile.
    pub const LONG: Self = Self {
        queue: Duration::from_secs(30),
        database: Duration::from_secs(30),
    };
}

/// What the queues of all resources share: their places at the database, and how much waits.
#[derive(Clone)]
pub struct Lanes {
    lanes: Arc<[Lane]>,
    most_batch: usize,
    most_waiting: usize,
}

#[derive(Default)]
struct Lane {
    /// The lane's one place at the database, given in order of asking.
    turn: Mutex<()>,
    /// Single writes that wait.
    waiting: AtomicUsize,
    /// Their bytes.
    waiting_bytes: AtomicUsize,
}

impl Lanes {
    /// Idle lanes, as many and as long as the settings say.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        describe_metrics();
        Self {
            lanes: (0..config.lanes()).map(|_| Lane::default()).collect(),
            most_batch: config.write_batch as usize,
            most_waiting: config.write_queue as usize,
        }
    }

    /// Most writes of one batch.
    #[must_use]
    pub fn most_batch(&self) -> usize {
        self.most_batch
    }

    /// Whether there is room for another write of a store; asked before its body is read.
    ///
    /// # Errors
    /// `Overloaded` when its lane is full.
    pub fn check(&self, store_id: i64) -> Result<(), Error> {
        let lane = &self.lanes[self.number(store_id)];
        let full = lane.waiting.load(Ordering::Relaxed) >= self.most_waiting
            || lane.waiting_bytes.load(Ordering::Relaxed) >= QUEUE_BYTES;
        if full { Err(Error::Overloaded) } else { Ok(()) }
    }

    /// Single writes that wait, over all lanes.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.lanes
            .iter()
            .map(|lane| lane.waiting.load(Ordering::Relaxed))
            .sum()
    }

    /// A place in the queue, for a write of so many bytes.
    fn place(&self, number: usize, bytes: usize) -> Result<Place, Error> {
        let lane = &self.lanes[number];
        // Counted from before it is checked, so that a race can't let two in.
        let place = Place {
            lanes: Arc::clone(&self.lanes),
            number,
            bytes,
        };
        let waiting = lane.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = lane.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A lone write of any size is let in.
        if waiting >= self.most_waiting || (waiting > 0 && waiting_bytes + bytes > QUEUE_BYTES) {
            return Err(Error::Overloaded);
        }
        Ok(place)
    }

    /// The lane of a store: the same in every process with as many lanes. The multiplier spreads
    /// neighbouring ids (Knuth, volume 3, section 6.4).
    fn number(&self, store_id: i64) -> usize {
        let spread = store_id.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let lanes = self.lanes.len() as u64;
        usize::try_from(spread % lanes).unwrap_or(0)
    }
}

/// One write in a queue's count, until it is dropped.
struct Place {
    lanes: Arc<[Lane]>,
    number: usize,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let lane = &self.lanes[self.number];
        lane.waiting.fetch_sub(1, Ordering::Relaxed);
        lane.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The way into the lanes for one resource. The lanes end when the last clone is dropped and what
/// was queued is written.
pub struct Writer<R: Resource> {
    lanes: Lanes,
    /// One queue a lane. Unbounded as such: single writes are bounded by [`Place`], bulk by the
    /// number of bulk requests.
    queues: Arc<[mpsc::UnboundedSender<Entry<R>>]>,
}

impl<R: Resource> Clone for Writer<R> {
    fn clone(&self) -> Self {
        Self {
            lanes: self.lanes.clone(),
            queues: Arc::clone(&self.queues),
        }
    }
}

/// What one caller asked for in one go.
struct Entry<R: Resource> {
    writes: Vec<Write<R>>,
    class: Class,
    since: Instant,
    patience: Patience,
    place: Option<Place>,
    reply: oneshot::Sender<Result<Answers<R>, Error>>,
}

/// Whose writes may share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Single writes, among themselves.
    Single,
    /// Slices of bulk requests, among themselves.
    Slice,
    /// All or nothing: alone.
    Whole,
}

impl<R: Resource> Writer<R> {
    /// Starts the lanes of one resource.
    #[must_use]
    pub fn start(lanes: &Lanes, state: &State) -> Self {
        let queues = (0..lanes.lanes.len()).map(|number| {
            let (sender, arrivals) = mpsc::unbounded_channel();
            let queue = Queue {
                state: state.clone(),
                lanes: lanes.clone(),
                number,
                arrivals,
                singles: VecDeque::new(),
                bulk: VecDeque::new(),
                bulk_is_next: false,
                metrics: Metrics::of::<R>(),
            };
            state.tasks.spawn(queue.run());
            sender
        });
        Self {
            lanes: lanes.clone(),
            queues: queues.collect(),
        }
    }

    /// Most writes of one batch.
    #[must_use]
    pub fn most_batch(&self) -> usize {
        self.lanes.most_batch
    }

    /// Writes one record.
    ///
    /// # Errors
    /// `Overloaded` when the lane is full or too slow; what the write came to.
    pub async fn single(&self, write: Write<R>) -> Result<Written<R>, Error> {
        let number = self.lanes.number(write.store_id);
        let place = self.lanes.place(number, write.bytes)?;
        let answers = self
            .enter(
                number,
                Class::Single,
                vec![write],
                Patience::SHORT,
                Some(place),
            )
            .await?;
        let only = answers.into_iter().next();
        only.unwrap_or_else(|| Err(Error::internal("a write got no answer")))
    }

    /// Writes a slice of a bulk request, all of one store; each write has its own answer.
    ///
    /// # Errors
    /// What kept the whole slice from being written.
    pub async fn slice(
        &self,
        writes: Vec<Write<R>>,
        patience: Patience,
    ) -> Result<Answers<R>, Error> {
        self.many(Class::Slice, writes, patience).await
    }

    /// Writes all of it in one transaction, or nothing.
    ///
    /// # Errors
    /// What kept it from being written.
    pub async fn whole(&self, writes: Vec<Write<R>>) -> Result<Answers<R>, Error> {
        self.many(Class::Whole, writes, Patience::SHORT).await
    }

    async fn many(
        &self,
        class: Class,
        writes: Vec<Write<R>>,
        patience: Patience,
    ) -> Result<Answers<R>, Error> {
        let Some(first) = writes.first() else {
            return Ok(Vec::new());
        };
        let number = self.lanes.number(first.store_id);
        self.enter(number, class, writes, patience, None).await
    }

    async fn enter(
        &self,
        number: usize,
        class: Class,
        writes: Vec<Write<R>>,
        patience: Patience,
        place: Option<Place>,
    ) -> Result<Answers<R>, Error> {
        let (reply, answer) = oneshot::channel();
        let entry = Entry {
            writes,
            class,
            since: Instant::now(),
            patience,
            place,
            reply,
        };
        let ended = |_| Error::internal("the lane of this write has ended");
        self.queues[number].send(entry).map_err(ended)?;
        let died = |_| Error::internal("the batch of this write died");
        answer.await.map_err(died)?
    }
}

/// One lane's queue of one resource: the only one who reads it.
struct Queue<R: Resource> {
    state: State,
    lanes: Lanes,
    number: usize,
    arrivals: mpsc::UnboundedReceiver<Entry<R>>,
    singles: VecDeque<Entry<R>>,
    bulk: VecDeque<Entry<R>>,
    /// Single writes and bulk take turns while both wait.
    bulk_is_next: bool,
    metrics: Metrics,
}

impl<R: Resource> Queue<R> {
    /// Batch after batch until nobody can ask any more and everything is written.
    async fn run(mut self) {
        let lanes = Arc::clone(&self.lanes.lanes);
        loop {
            if self.is_empty() {
                let Some(entry) = self.arrivals.recv().await else {
                    return;
                };
                self.arrive(entry);
            }
            let turn = self.turn(&lanes).await;
            self.take_arrivals();
            self.expire();
            if let Some(batch) = self.next_batch() {
                self.write(batch).await;
            }
            drop(turn);
        }
    }

    fn is_empty(&self) -> bool {
        self.singles.is_empty() && self.bulk.is_empty()
    }

    fn arrive(&mut self, entry: Entry<R>) {
        match entry.class {
            Class::Single => self.singles.push_back(entry),
            Class::Slice | Class::Whole => self.bulk.push_back(entry),
        }
    }

    /// Everything that has come by now.
    fn take_arrivals(&mut self) {
        while let Ok(entry) = self.arrivals.try_recv() {
            self.arrive(entry);
        }
    }

    /// The lane's place at the database.
    async fn turn<'l>(&mut self, lanes: &'l [Lane]) -> MutexGuard<'l, ()> {
        let mut turn = std::pin::pin!(lanes[self.number].turn.lock());
        loop {
            tokio::select! {
                biased;
                turn = &mut turn => return turn,
                () = tokio::time::sleep(EXPIRY) => {
                    self.take_arrivals();
                    self.expire();
                }
            }
        }
    }

    /// Refuses what has waited too long: nothing was done of it.
    fn expire(&mut self) {
        let now = Instant::now();
        for queue in [&mut self.singles, &mut self.bulk] {
            while let Some(entry) = queue.pop_front_if(|entry| entry.is_late(now)) {
                // Who hung up doesn't want to know.
                let _ = entry.reply.send(Err(Error::Overloaded));
            }
        }
    }

    /// What goes to the database next.
    fn next_batch(&mut self) -> Option<Batch<R>> {
        let bulk = match (self.singles.is_empty(), self.bulk.is_empty()) {
            (true, true) => return None,
            (false, false) => self.bulk_is_next,
            (no_singles, _) => no_singles,
        };
        self.bulk_is_next = !bulk;
        let queue = if bulk {
            &mut self.bulk
        } else {
            &mut self.singles
        };
        let mut batch = Batch::begin(queue.pop_front()?);
        while let Some(entry) = queue.pop_front_if(|e| batch.has_room(e, self.lanes.most_batch)) {
            batch.add(entry);
        }
        Some(batch)
    }

    /// Writes a batch in a task of its own, so that a panic ends nothing but the batch, and a bulk
    /// request that waits for a lost database doesn't keep the lane.
    async fn write(&mut self, batch: Batch<R>) {
        let class = batch.class;
        self.metrics.begins(&batch);
        let metrics = self.metrics.clone();
        let writing = self
            .state
            .tasks
            .spawn(batch.write(self.state.clone(), metrics));
        let mut writing = std::pin::pin!(writing);
        let began = Instant::now();
        loop {
            tokio::select! {
                biased;
                // A panic has been told by the runtime; its callers find their answers missing.
                _ = &mut writing => return,
                () = tokio::time::sleep(EXPIRY) => {
                    self.take_arrivals();
                    self.expire();
                    if class != Class::Single && began.elapsed() > Patience::SHORT.database {
                        return;
                    }
                }
            }
        }
    }
}

impl<R: Resource> Entry<R> {
    fn is_late(&self, now: Instant) -> bool {
        now.duration_since(self.since) > self.patience.queue
    }

    fn bytes(&self) -> usize {
        self.writes.iter().map(|write| write.bytes).sum()
    }
}

/// What goes to the database as one transaction: the writes of one or many callers, in order of
/// arrival.
struct Batch<R: Resource> {
    class: Class,
    writes: Vec<Write<R>>,
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
    fn begin(entry: Entry<R>) -> Self {
        let mut batch = Self {
            class: entry.class,
            writes: Vec::new(),
            bytes: 0,
            patience: entry.patience.database,
            callers: Vec::new(),
        };
        batch.add(entry);
        batch
    }

    /// Whether another entry belongs into this batch.
    fn has_room(&self, entry: &Entry<R>, most_writes: usize) -> bool {
        self.class != Class::Whole
            && self.class == entry.class
            && self.writes.len() + entry.writes.len() <= most_writes
            && self.bytes + entry.bytes() <= BATCH_BYTES
    }

    fn add(&mut self, entry: Entry<R>) {
        self.bytes += entry.bytes();
        self.patience = self.patience.max(entry.patience.database);
        self.callers.push(Caller {
            writes: entry.writes.len(),
            since: entry.since,
            reply: entry.reply,
        });
        self.writes.extend(entry.writes);
        // It waits no more: its place goes to another one.
        drop(entry.place);
    }

    /// Writes it and answers everybody.
    async fn write(self, state: State, metrics: Metrics) {
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
        };
        match write::write(&state, &self.writes, options).await {
            Ok(answers) => {
                metrics.count_outcomes(&answers);
                hand_out(answers, self.callers);
            }
            Err(error) => refuse(error, self.callers),
        }
    }
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
        "Time that the commit of a batch took."
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
