//! The one way in which anything is written: a slice of inputs, one transaction.
//!
//! ```text
//! load the rows by key, with what they refer to, without locks
//!   └─ load what those carry along that bring news              (companions: customers)
//!        └─ apply the writes in order of arrival, in memory     (decide)
//!             ├─ nothing changes: answer from what was read     no transaction, no lock, no WAL
//!             ├─ stored rows change, and nothing else           one statement, its own transaction
//!             └─ begin
//!                  who would be made or renamed: lock, load, apply again   (phones)
//!                  store companions whose version still stands
//!                  store rows whose version still stands, and all events
//!                  commit → answers
//! ```
//!
//! A batch is a small serial execution in memory over what was read, followed by a
//! compare-and-swap of every row by its version. So an answer is true at one moment within the
//! request: an unchanged one at the read, a changed one at the commit. When a version no longer
//! stands, the whole attempt is undone and made again, now with locks taken before reading, in the
//! order that everybody follows: phones, customers, rows, each sorted.
//!
//! **A lost commit.** Ids of records and events are proposed before the first attempt and kept. An
//! attempt that follows a commit without an answer locks the rows and then asks for its event ids:
//! found means that the commit was done and its answers are given; else the writes are made again.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rand::RngExt as _;
use sqlx::Executor as _;
use uuid::Uuid;

use super::events::{self, Event};
use super::failure::{self, Failure};
use super::group_commit::LaneKey;
use super::record::{Record, RowWrite, Working};
use super::request::Conditions;
use super::transaction::Transaction;
use super::{Arrival, Companions as _, Locks, Resource};
use crate::clock::Clock;
use crate::error::Error;
use crate::state::State;

/// One write that a caller asked for.
pub struct Write<R: Resource> {
    /// Whose record it is.
    pub store_id: i64,
    /// What is to become of it.
    pub change: Change<R>,
    /// `If-Match` and `If-None-Match`.
    pub conditions: Conditions,
    /// When the caller's own system changed the record.
    pub source_updated_at: Option<DateTime<Utc>>,
    /// The id that the record gets if it is new.
    pub id: Uuid,
    /// The id that the event gets if there is one.
    pub event_id: Uuid,
    /// About how much memory it takes: the bytes of what was sent.
    pub bytes: usize,
}

/// POST or PATCH.
pub enum Change<R: Resource> {
    /// Create or replace.
    Put(R::Input),
    /// Change some members of the record with this key.
    Patch(R::Key, R::Patch),
}

impl<R: Resource> Write<R> {
    /// A write with fresh ids.
    #[must_use]
    pub fn new(
        store_id: i64,
        change: Change<R>,
        source_updated_at: Option<DateTime<Utc>>,
        bytes: usize,
        clock: &Clock,
    ) -> Self {
        let (id, event_id) = (clock.new_id(), clock.new_id());
        Self {
            store_id,
            change,
            conditions: Conditions::default(),
            source_updated_at,
            id,
            event_id,
            bytes,
        }
    }

    /// What must not be under way elsewhere while this is written.
    #[must_use]
    pub fn lane_keys(&self) -> Vec<LaneKey> {
        let mut keys = R::lane_keys(self.store_id, &self.key());
        if let Change::Put(input) = &self.change {
            keys.extend(R::companion_keys(self.store_id, input));
        }
        keys
    }

    fn key(&self) -> R::Key {
        match &self.change {
            Change::Put(input) => R::key(input),
            Change::Patch(key, _) => key.clone(),
        }
    }
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key was new: 201.
    Created,
    /// The content differed.
    Updated,
    /// The content is what was there already.
    Unchanged,
    /// The record has been changed later in the caller's own system.
    Stale,
}

impl Outcome {
    /// As the header and the bulk results spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Stale => "stale",
        }
    }
}

/// The answer to one write.
pub struct Written<R: Resource> {
    /// What it came to.
    pub outcome: Outcome,
    /// The record after this write.
    pub record: Arc<Record<R::Content>>,
    /// What the answer shows besides; only with [`Detail::Full`].
    pub extra: Option<R::Extra>,
}

/// A batch's answers, in the order of its writes.
pub type Answers<R> = Vec<Result<Written<R>, Error>>;

/// How much the answers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Everything that a single write shows.
    Full,
    /// Outcome and record.
    Brief,
}

/// What happens at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// What could be done is kept; each write has its own answer.
    Each,
    /// All or nothing.
    Whole,
    /// All or nothing, and then nothing after all.
    DryRun,
}

/// How long a batch waits for a lock of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockWait {
    /// As the connection is set.
    Usual,
    /// Hardly: somebody holds one of many, and others wait to hear that theirs is not it.
    Short,
}

/// How a batch is written.
#[derive(Clone, Copy)]
pub struct Options {
    /// How much the answers hold.
    pub detail: Detail,
    /// What happens at the end.
    pub ending: Ending,
    /// How long a lost database is waited for.
    pub patience: Duration,
    /// How long a lock is waited for.
    pub lock_wait: LockWait,
}

/// What each write adds to the time that a statement of its batch may take.
const FOR_EACH_WRITE: Duration = Duration::from_millis(8);

/// Attempts lost to faster writers before the caller is asked to come back. With locks taken first
/// only a race for a new key is lost, and at most once per key.
const MOST_CONFLICTS: u32 = 20;
/// What [`LockWait::Short`] means: as long as a transaction takes that is about to end.
const SHORT_LOCK_WAIT: &str = "set local lock_timeout = '10ms'";
/// Attempts lost to broken connections before patience begins to count: a pool may be full of them.
const MOST_BROKEN: u32 = 3;

/// Writes a slice of inputs in one transaction.
///
/// # Errors
/// What kept the whole batch from being written; what is wrong with one write alone is its answer.
pub async fn write<R: Resource>(
    state: &State,
    writes: &[Write<R>],
    options: Options,
) -> Result<Answers<R>, Error> {
    let mut lost = None;
    let written = attempt(state, writes, options, &mut lost).await;
    written.map_err(|failure| {
        // Nobody looks again what became of it.
        let failure = match lost {
            Some(_) => failure.after_lost_commit(),
            None => failure,
        };
        failure.into_error()
    })
}

/// The same for who tries again what a lock has held up: `lost` are the answers of a commit that got
/// none itself, kept from one time to the next.
///
/// # Errors
/// As for [`write`]. Where it [is of a lock](Failure::is_of_a_lock), nothing was done but what `lost`
/// may tell of.
pub async fn attempt<R: Resource>(
    state: &State,
    writes: &[Write<R>],
    options: Options,
    lost: &mut Option<Answers<R>>,
) -> Result<Answers<R>, Failure> {
    let batch = Batch {
        state,
        writes,
        keys: writes
            .iter()
            .map(|write| (write.store_id, write.key()))
            .collect(),
        options,
    };
    match batch.until_settled(lost).await {
        Err(failure)
            if failure.is_of_one_row() && writes.len() > 1 && options.ending == Ending::Each =>
        {
            metrics::counter!("keyfold_write_splits_total").increment(1);
            Ok(Box::pin(in_halves(state, writes, options)).await)
        }
        settled => settled,
    }
}

/// One row that Postgres refuses fails its batch; halving finds it, so that only its caller hears
/// of it.
fn in_halves<'a, R: Resource>(
    state: &'a State,
    writes: &'a [Write<R>],
    options: Options,
) -> Pin<Box<dyn Future<Output = Answers<R>> + Send + 'a>> {
    Box::pin(async move {
        let mut answers = Vec::with_capacity(writes.len());
        let (first, second) = writes.split_at(writes.len() / 2);
        for half in [first, second] {
            match write(state, half, options).await {
                Ok(settled) => answers.extend(settled),
                Err(error) if half.len() == 1 => answers.push(Err(error)),
                Err(error) => {
                    // The first half may be stored already, so each write gets its own answer.
                    let shared = Arc::new(error);
                    answers.extend(half.iter().map(|_| Err(Error::Shared(Arc::clone(&shared)))));
                }
            }
        }
        answers
    })
}

/// A slice on its way through its attempts.
struct Batch<'a, R: Resource> {
    state: &'a State,
    writes: &'a [Write<R>],
    keys: Vec<(i64, R::Key)>,
    options: Options,
}

/// The writes of a batch, applied in memory.
struct Applied<R: Resource> {
    working: Working<R>,
    answers: Answers<R>,
    /// Writes that make or rename a record, which has to be locked.
    fresh: Vec<usize>,
    /// Some content lacks what a companion has to give, for nobody foresaw that it would be needed.
    incomplete: bool,
}

/// What an attempt has read.
struct Read<R: Resource> {
    stored: Vec<Arc<Record<R::Content>>>,
    companions: R::Companions,
    /// The writes for which companions were read.
    needs: Vec<usize>,
}

/// A transaction that is ready for its end.
enum Prepared<R: Resource> {
    Commit(Answers<R>),
    RollBack(Answers<R>),
}

impl<R: Resource> Batch<'_, R> {
    /// Attempts until it is done, or it is clear that it won't be.
    async fn until_settled(&self, lost: &mut Option<Answers<R>>) -> Result<Answers<R>, Failure> {
        let started = Instant::now();
        let (mut conflicts, mut broken) = (0, 0);
        loop {
            let careful = conflicts > 0 || lost.is_some();
            let failure = match self.attempt(careful, lost).await {
                Ok(answers) => return Ok(answers),
                Err(failure) => failure,
            };
            match failure {
                Failure::Conflict if conflicts < MOST_CONFLICTS => conflicts += 1,
                Failure::Disconnected(sqlx::Error::PoolTimedOut)
                    if started.elapsed() < self.options.patience => {}
                Failure::Disconnected(ref error) | Failure::CommitLost(ref error)
                    if !matches!(error, sqlx::Error::PoolTimedOut)
                        && !failure::lacks_room(error)
                        && (broken < MOST_BROKEN || started.elapsed() < self.options.patience) =>
                {
                    broken += 1;
                }
                failure if failure.is_of_a_lock() => return Err(failure),
                // It was never found out whether the first commit was done.
                failure if lost.is_some() => return Err(failure.after_lost_commit()),
                failure => return Err(failure),
            }
            metrics::counter!("keyfold_write_retries_total").increment(1);
            pause(conflicts + broken).await;
        }
    }

    async fn attempt(
        &self,
        careful: bool,
        lost: &mut Option<Answers<R>>,
    ) -> Result<Answers<R>, Failure> {
        let pool = &self.state.pool;
        let mut lent = pool.acquire().await?;
        let writes = u32::try_from(self.writes.len()).unwrap_or(u32::MAX);
        lent.allow(pool.limits().statement + FOR_EACH_WRITE * writes);
        if careful {
            let mut transaction = Transaction::begin_on(lent).await?;
            self.hurry(&mut transaction).await?;
            let prepared = self.carefully(&mut transaction, lost).await;
            return self.end(transaction, prepared, lost).await;
        }
        let connection = &mut *lent;
        let mut companions = R::Companions::default();
        let stored = R::load(connection, &self.keys, Locks::None, &mut companions).await?;
        let working = Working::<R>::over(&stored);
        let needs = self.needs(&working);
        if !needs.is_empty() {
            let inputs = self.inputs(&needs);
            companions.load(connection, &inputs, Locks::None).await?;
        }
        let mut applied = self.apply(working, &mut companions, &needs);
        if !applied.working.is_changed() {
            self.complete(connection, &mut applied.answers, &companions)
                .await?;
            return Ok(applied.answers);
        }
        if self.is_one_statement(&applied, &companions) {
            return self.at_once(connection, applied, &companions, lost).await;
        }
        let read = Read {
            stored,
            companions,
            needs,
        };
        let mut transaction = Transaction::begin_on(lent).await?;
        self.hurry(&mut transaction).await?;
        let prepared = self.optimistically(&mut transaction, read, applied).await;
        self.end(transaction, prepared, lost).await
    }

    /// Sees to it that a transaction does not wait for locks if it may not.
    async fn hurry(&self, transaction: &mut Transaction) -> sqlx::Result<()> {
        if self.options.lock_wait == LockWait::Short {
            transaction.connection().execute(SHORT_LOCK_WAIT).await?;
        }
        Ok(())
    }

    /// Puts whose companions are looked at, unless it turns out that they change nothing: those that
    /// bring news, and those whose key comes again, since the first may be news to the second.
    fn needs(&self, stored: &Working<R>) -> Vec<usize> {
        let mut seen = HashSet::new();
        let current: Vec<_> = self
            .writes
            .iter()
            .zip(&self.keys)
            .map(|(write, (_, key))| stored.find(write.store_id, key))
            .collect();
        let again: HashSet<Uuid> = current
            .iter()
            .flatten()
            .map(|record| record.id)
            .filter(|id| !seen.insert(*id))
            .collect();
        let needed = |at: &usize| match (&self.writes[*at].change, current[*at]) {
            (Change::Patch(..), _) => false,
            (Change::Put(input), None) => R::brings_companion(input, None),
            (Change::Put(input), Some(record)) => {
                R::brings_companion(input, Some(&record.content))
                    || (again.contains(&record.id) && R::brings_companion(input, None))
            }
        };
        (0..self.writes.len()).filter(needed).collect()
    }

    /// Without locks on rows: whoever is faster wins, and this attempt is undone.
    async fn optimistically(
        &self,
        transaction: &mut Transaction,
        mut read: Read<R>,
        mut applied: Applied<R>,
    ) -> Result<Prepared<R>, Failure> {
        let connection = transaction.connection();
        let fresh = std::mem::take(&mut applied.fresh);
        if !fresh.is_empty() {
            let locks = Locks::Fresh(&fresh);
            read.stored = R::load(connection, &self.keys, locks, &mut read.companions).await?;
        }
        let unlocked = read.companions.unlocked().to_vec();
        if !unlocked.is_empty() {
            let inputs = self.inputs(&read.needs);
            let locks = Locks::Fresh(&unlocked);
            read.companions.load(connection, &inputs, locks).await?;
        }
        if !(fresh.is_empty() && unlocked.is_empty()) {
            let working = Working::over(&read.stored);
            applied = self.apply(working, &mut read.companions, &read.needs);
        }
        let is_locked = |at: &usize| fresh.binary_search(at).is_ok();
        let all_locked =
            read.companions.unlocked().is_empty() && applied.fresh.iter().all(is_locked);
        if !all_locked || applied.incomplete {
            return Err(Failure::Conflict);
        }
        self.store(transaction, applied, read.companions).await
    }

    /// With every lock taken before reading.
    async fn carefully(
        &self,
        transaction: &mut Transaction,
        lost: &mut Option<Answers<R>>,
    ) -> Result<Prepared<R>, Failure> {
        let connection = transaction.connection();
        let needs: Vec<usize> = (0..self.writes.len())
            .filter(|at| matches!(self.writes[*at].change, Change::Put(_)))
            .collect();
        let mut companions = R::Companions::default();
        companions
            .load(connection, &self.inputs(&needs), Locks::All)
            .await?;
        let stored = R::load(connection, &self.keys, Locks::All, &mut companions).await?;
        if lost.is_some() && events::any_exists(connection, &self.proposed_events()).await? {
            return Ok(Prepared::RollBack(lost.take().unwrap_or_default()));
        }
        let applied = self.apply(Working::over(&stored), &mut companions, &needs);
        self.store(transaction, applied, companions).await
    }

    /// Stores what was applied, up to the commit.
    async fn store(
        &self,
        transaction: &mut Transaction,
        mut applied: Applied<R>,
        mut companions: R::Companions,
    ) -> Result<Prepared<R>, Failure> {
        let refused = applied.answers.iter().any(Result::is_err);
        if refused && self.options.ending != Ending::Each {
            return Ok(Prepared::RollBack(applied.answers));
        }
        let connection = transaction.connection();
        companions.go_ahead(connection).await?;
        let events = events_of(&applied, &companions);
        store(connection, &applied.working, &companions, &events).await?;
        self.complete(connection, &mut applied.answers, &companions)
            .await?;
        Ok(match self.options.ending {
            Ending::DryRun => Prepared::RollBack(applied.answers),
            Ending::Each | Ending::Whole => Prepared::Commit(applied.answers),
        })
    }

    /// Whether nothing but changes of stored rows is to be stored, for which no lock is missing.
    fn is_one_statement(&self, applied: &Applied<R>, companions: &R::Companions) -> bool {
        let is_kept = match self.options.ending {
            Ending::Each => true,
            Ending::Whole => applied.answers.iter().all(Result::is_ok),
            Ending::DryRun => false,
        };
        is_kept
            && self.options.lock_wait == LockWait::Usual
            && !applied.incomplete
            && applied.fresh.is_empty()
            && !applied.working.has_new()
            && companions.unlocked().is_empty()
            && companions.go_along()
    }

    /// Stores what was applied in the one statement that it takes, which is its own transaction.
    async fn at_once(
        &self,
        connection: &mut crate::database::Connection,
        mut applied: Applied<R>,
        companions: &R::Companions,
        lost: &mut Option<Answers<R>>,
    ) -> Result<Answers<R>, Failure> {
        self.complete(connection, &mut applied.answers, companions)
            .await?;
        let rows = applied.working.rows();
        let events = events_of(&applied, companions);
        let began = Instant::now();
        let changed = R::change(connection, &rows, companions, &events).await;
        self.committed(changed, began, applied.answers, lost)
    }

    /// Ends the transaction, whatever came before.
    async fn end(
        &self,
        transaction: Transaction,
        prepared: Result<Prepared<R>, Failure>,
        lost: &mut Option<Answers<R>>,
    ) -> Result<Answers<R>, Failure> {
        let answers = match prepared {
            Ok(Prepared::Commit(answers)) => answers,
            Ok(Prepared::RollBack(answers)) => {
                transaction.rollback().await;
                return Ok(answers);
            }
            Err(failure) => {
                transaction.rollback().await;
                return Err(failure);
            }
        };
        let began = Instant::now();
        let committed = transaction.commit().await;
        self.committed(committed, began, answers, lost)
    }

    /// What the end of a transaction means for its answers.
    fn committed(
        &self,
        committed: sqlx::Result<()>,
        began: Instant,
        answers: Answers<R>,
        lost: &mut Option<Answers<R>>,
    ) -> Result<Answers<R>, Failure> {
        metrics::histogram!("keyfold_write_commit_seconds").record(began.elapsed().as_secs_f64());
        match committed.map_err(Failure::of_commit) {
            Ok(()) => Ok(answers),
            Err(failure) => {
                if matches!(failure, Failure::CommitLost(_)) {
                    *lost = Some(answers);
                }
                Err(failure)
            }
        }
    }

    /// Applies the writes in order of arrival to a working set of what was read.
    fn apply(
        &self,
        mut working: Working<R>,
        companions: &mut R::Companions,
        needs: &[usize],
    ) -> Applied<R> {
        let now = self.state.clock.now();
        companions.restart();
        let mut answers = Vec::with_capacity(self.writes.len());
        let (mut fresh, mut incomplete) = (Vec::new(), false);
        for (at, write) in self.writes.iter().enumerate() {
            let current = working.find(write.store_id, &self.keys[at].1).cloned();
            let mut decision = decide(write, current.as_deref(), now);
            if let Decision::Changed(_, record) = &mut decision {
                if R::needs_companion(&record.content) {
                    self.settle(at, record, companions, needs, now);
                    incomplete |= R::needs_companion(&record.content);
                }
                let before = current.as_deref().map(|record| &record.content);
                if R::needs_lock(before, &record.content) {
                    fresh.push(at);
                }
            }
            answers.push(take(decision, current, write, &mut working));
        }
        Applied {
            working,
            answers,
            fresh,
            incomplete,
        }
    }

    /// Completes a content from its companions, where they are loaded.
    fn settle(
        &self,
        at: usize,
        record: &mut Record<R::Content>,
        companions: &mut R::Companions,
        needs: &[usize],
        now: DateTime<Utc>,
    ) {
        let write = &self.writes[at];
        let (Ok(place), Change::Put(input)) = (needs.binary_search(&at), &write.change) else {
            return;
        };
        let arrival = Arrival {
            place,
            store_id: write.store_id,
            input,
            source_updated_at: write.source_updated_at,
            now,
        };
        companions.settle(&arrival, &mut record.content, &self.state.clock);
    }

    fn inputs(&self, places: &[usize]) -> Vec<(i64, &R::Input)> {
        places
            .iter()
            .filter_map(|at| match &self.writes[*at].change {
                Change::Put(input) => Some((self.writes[*at].store_id, input)),
                Change::Patch(..) => None,
            })
            .collect()
    }

    fn proposed_events(&self) -> Vec<(i64, Uuid)> {
        self.writes
            .iter()
            .map(|write| (write.store_id, write.event_id))
            .collect()
    }

    /// Adds what full answers show besides the records.
    async fn complete(
        &self,
        connection: &mut crate::database::Connection,
        answers: &mut Answers<R>,
        companions: &R::Companions,
    ) -> Result<(), Failure> {
        if self.options.detail == Detail::Brief {
            return Ok(());
        }
        let records: Vec<_> = answers
            .iter()
            .flatten()
            .map(|w| Arc::clone(&w.record))
            .collect();
        let extras = R::extras(connection, &records, companions).await?;
        for (written, extra) in answers.iter_mut().flatten().zip(extras) {
            written.extra = Some(extra);
        }
        Ok(())
    }
}

/// What one write means for the record as it is.
enum Decision<R: Resource> {
    Refused(Error),
    /// Nothing to store.
    Kept(Outcome),
    /// Equal content, but later in the caller's own system: only that time advances.
    Touched(Record<R::Content>),
    Changed(Outcome, Record<R::Content>),
}

/// The rules, in their order: record there, preconditions, stale, unchanged, the change.
fn decide<R: Resource>(
    write: &Write<R>,
    current: Option<&Record<R::Content>>,
    now: DateTime<Utc>,
) -> Decision<R> {
    if current.is_none() && matches!(write.change, Change::Patch(..)) {
        return Decision::Refused(Error::NotFound);
    }
    if !write.conditions.hold(current.map(|record| record.version)) {
        return Decision::Refused(Error::PreconditionFailed);
    }
    let Some(current) = current else {
        return created(write, now);
    };
    let (ours, theirs) = (current.source_updated_at, write.source_updated_at);
    if theirs.is_some() && theirs < ours {
        return Decision::Kept(Outcome::Stale);
    }
    let content = match &write.change {
        Change::Put(input) => R::put(input, Some(&current.content)),
        Change::Patch(_, patch) => R::patch(patch, &current.content),
    };
    if content != current.content {
        return Decision::Changed(Outcome::Updated, current.changed(content, theirs, now));
    }
    if theirs > ours {
        return Decision::Touched(Record {
            source_updated_at: theirs,
            ..current.clone()
        });
    }
    Decision::Kept(Outcome::Unchanged)
}

fn created<R: Resource>(write: &Write<R>, now: DateTime<Utc>) -> Decision<R> {
    let content = match &write.change {
        Change::Put(input) => R::put(input, None),
        Change::Patch(..) => return Decision::Refused(Error::NotFound),
    };
    let record = Record {
        store_id: write.store_id,
        id: write.id,
        version: 1,
        source_updated_at: write.source_updated_at,
        created_at: now,
        updated_at: now,
        place: None,
        content,
    };
    Decision::Changed(Outcome::Created, record)
}

/// Takes a decision over into the working set; gives its answer.
fn take<R: Resource>(
    decision: Decision<R>,
    current: Option<Arc<Record<R::Content>>>,
    write: &Write<R>,
    working: &mut Working<R>,
) -> Result<Written<R>, Error> {
    let (outcome, record) = match decision {
        Decision::Refused(error) => return Err(error),
        Decision::Kept(outcome) => (outcome, current.ok_or(Error::NotFound)?),
        Decision::Touched(record) => {
            let record = Arc::new(record);
            working.put(Arc::clone(&record));
            (Outcome::Unchanged, record)
        }
        Decision::Changed(outcome, record) => {
            let record = Arc::new(record);
            working.put(Arc::clone(&record));
            working.note(Event::of::<R>(write.event_id, outcome, &record));
            (outcome, record)
        }
    };
    Ok(Written {
        outcome,
        record,
        extra: None,
    })
}

/// The events of all that changed, those of companions first.
fn events_of<'a, R: Resource>(
    applied: &'a Applied<R>,
    companions: &'a R::Companions,
) -> Vec<&'a Event> {
    let events = companions.events().iter();
    events.chain(applied.working.events()).collect()
}

/// Stores the rows of a working set with companions and events, provided that each still has the
/// version that was read.
///
/// # Errors
/// `Conflict` when somebody was faster.
pub async fn store<R: Resource>(
    connection: &mut crate::database::Connection,
    working: &Working<R>,
    companions: &R::Companions,
    events: &[&Event],
) -> Result<(), Failure> {
    let rows = working.rows();
    let (new, stored): (Vec<_>, Vec<_>) = rows.into_iter().partition(RowWrite::is_new);
    // Who holds a new key has all its stored rows already, so nobody waits for it with a row that
    // it waits for.
    if stored.is_empty() {
        companions.change(connection, events).await?;
    } else {
        R::change(connection, &stored, companions, events).await?;
    }
    if new.is_empty() {
        return Ok(());
    }
    let made = R::insert(connection, &new).await?;
    if usize::try_from(made) == Ok(new.len()) {
        Ok(())
    } else {
        Err(Failure::Conflict)
    }
}

/// Waits a little before the next attempt, longer each time.
async fn pause(failed: u32) {
    let most_ms = 1_u64 << failed.min(8);
    let wait_ms = rand::rng().random_range(0..=most_ms);
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
}
