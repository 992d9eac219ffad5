//! Those inside who follow the events of stores and let them have their effects, once.
//!
//! ```text
//!  a change ─ event (same transaction)
//!               └ numbered ─ begin
//!                              the consumer's row is locked: one at a time for a store
//!                              the next events in order ─ evaluate ─ effects are written
//!                              the position moves on
//!                            commit
//! ```
//!
//! The effects of an event and the position behind it are one transaction: whoever is killed in
//! between has done nothing, and the next one begins at the same event. A store that nobody follows
//! has no row, and its events are not looked at.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::events;
use super::failure::Failure;
use super::transaction::Transaction;
use crate::database::Connection;
use crate::outbox::Hints;
use crate::state::State;
use crate::vitals::Pulse;

/// Events whose effects are one transaction.
const SLICE: i64 = 500;
/// Stores that are followed at the same time.
const AT_ONCE: usize = 2;
/// How often new events are looked for, at most.
const EVERY: Duration = Duration::from_millis(200);
/// How many times as long as a look takes there is none, so that looks take a twentieth of a
/// connection; and how long that is at most.
const RESTS: u32 = 20;
const LONGEST_REST: Duration = Duration::from_secs(1);
/// How long to wait after the database failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Slices of one store before the others have their turn.
const MOST_SLICES: u32 = 4;

/// An event as consumers see it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its place in the store's feed.
    pub position: i64,
    /// Its own id.
    pub id: Uuid,
    /// `order.created` and so on.
    pub kind: String,
    /// The resource's path.
    pub resource: String,
    /// What changed.
    pub record_id: Uuid,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
    /// The version that the change led to.
    pub version: i64,
    /// When it changed.
    pub created_at: DateTime<Utc>,
}

/// Evaluation at work; gives the work that it left in the outbox.
pub type Evaluating<'c> = Pin<Box<dyn Future<Output = sqlx::Result<Vec<Uuid>>> + Send + 'c>>;

/// Who follows events.
#[derive(Clone, Copy)]
pub struct Consumer {
    /// Names it in `event_consumers`.
    pub name: &'static str,
    /// Lets events of one store have their effects, in the caller's transaction.
    pub evaluate: for<'c> fn(&'c State, &'c mut Connection, i64, &'c [Seen]) -> Evaluating<'c>,
}

/// What divides the events that were there when somebody began to look at them from those that came
/// later.
///
/// Positions do, where every event that was committed before has one. A backlog without positions is
/// not numbered for that, since it may be of any length and a request waits: what of it is older than
/// the moment was there before. That is right for every write that ended before the request began, or
/// began after it was answered, and one that overlaps may count as either; for the time of an event is
/// that of its record, taken while it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Events up to here were there.
    pub position: i64,
    /// Where some had no position: of those behind it, the ones up to this time as well.
    pub time: Option<DateTime<Utc>>,
}

impl Boundary {
    /// Whether an event came later.
    #[must_use]
    pub fn is_before(self, event: &Seen) -> bool {
        self.position < event.position && self.time.is_none_or(|time| time < event.created_at)
    }
}

/// Begins to follow a store's events, in the caller's transaction; gives what divides those that come
/// from those that were committed before. Whoever follows already goes on where they are.
///
/// # Errors
/// When the database fails.
pub async fn follow(
    connection: &mut Connection,
    store_id: i64,
    consumer: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Boundary> {
    let (position, is_all) = events::number_some(connection, store_id).await?;
    let boundary = Boundary {
        position,
        time: (!is_all).then_some(now),
    };
    sqlx::query!(
        "insert into event_consumers (store_id, consumer, position)
        values ($1, $2, $3)
        on conflict (store_id, consumer) do nothing",
        store_id,
        consumer,
        position,
    )
    .execute(connection)
    .await?;
    Ok(boundary)
}

/// Ends it: nobody has to look at the store's events any more.
///
/// # Errors
/// When the database fails.
pub async fn unfollow(
    connection: &mut Connection,
    store_id: i64,
    consumer: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from event_consumers where store_id = $1 and consumer = $2",
        store_id,
        consumer,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The least position that somebody has still to look behind: what comes after it is kept.
///
/// # Errors
/// When the database fails.
pub async fn least_position(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "select min(position) from event_consumers where store_id = $1",
        store_id,
    )
    .fetch_one(db)
    .await
}

/// Follows events until shutdown.
pub async fn run(state: State, consumers: Vec<Consumer>, hints: Hints, pulse: Pulse) {
    let mut follower = Follower {
        state,
        consumers,
        hints,
        pulse,
        fails: false,
        waiting: VecDeque::new(),
        busy: HashSet::new(),
        under_way: JoinSet::new(),
        trouble: HashMap::new(),
    };
    let mut next_look = Instant::now();
    let shutdown = follower.state.shutdown.clone();
    loop {
        follower.start();
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = follower.under_way.join_next() => follower.note(ended),
            () = tokio::time::sleep_until(next_look), if follower.waiting.is_empty() => {
                next_look = Instant::now() + follower.look().await;
            }
        }
    }
    // What is under way sees the shutdown between two slices.
    while follower.under_way.join_next().await.is_some() {}
}

/// A consumer of a store's events.
type Place = (i64, &'static str);

/// What a process does for all of them.
struct Follower {
    state: State,
    consumers: Vec<Consumer>,
    hints: Hints,
    pulse: Pulse,
    /// Whether the last look has failed.
    fails: bool,
    /// Those that had events before them at the last look.
    waiting: VecDeque<Place>,
    busy: HashSet<Place>,
    under_way: JoinSet<(Place, Result<(), Failure>)>,
    /// Those whose events could not have their effects.
    trouble: HashMap<Place, Trouble>,
}

/// How often a consumer failed in a row, and when it is tried again.
#[derive(Clone, Copy)]
struct Trouble {
    failures: u32,
    until: Instant,
}

impl Follower {
    /// Looks at all stores that are followed; gives the time to the next look.
    async fn look(&mut self) -> Duration {
        let looked = {
            let _under_way = self.pulse.begin();
            self.look_now().await
        };
        self.pulse.note(looked.is_ok());
        let (mut news, took) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(%error, "effects of events have to wait: the database can't be asked");
                self.fails = true;
                return AFTER_FAILURE;
            }
        };
        if std::mem::take(&mut self.fails) {
            tracing::info!("events have their effects again");
        }
        // Each process begins elsewhere, so that they seldom meet.
        if !news.is_empty() {
            let first = rand::random_range(0..news.len());
            news.rotate_left(first);
        }
        let places = news.into_iter().filter_map(|(store_id, name)| {
            let consumer = self.consumers.iter().find(|known| known.name == name)?;
            Some((store_id, consumer.name))
        });
        self.waiting = places.collect();
        rest_after(took)
    }

    /// Who has events before them, and how long the look took. That it waited for a connection is no
    /// cost of the look, and no reason to look less often.
    async fn look_now(&self) -> sqlx::Result<(Vec<(i64, String)>, Duration)> {
        let mut connection = self.state.pool.acquire().await?;
        let began = Instant::now();
        let news = behind(&mut *connection).await?;
        Ok((news, began.elapsed()))
    }

    /// Lets events have their effects where they wait, as far as there is room.
    fn start(&mut self) {
        while self.busy.len() < AT_ONCE
            && let Some(place) = self.waiting.pop_front()
        {
            let trouble = self.trouble.get(&place).copied();
            let waits = trouble.is_some_and(|trouble| Instant::now() < trouble.until);
            let consumer = self.consumers.iter().find(|known| known.name == place.1);
            let Some(consumer) = consumer.filter(|_| !waits && !self.busy.contains(&place)) else {
                continue;
            };
            self.busy.insert(place);
            let failures = trouble.map_or(0, |trouble| trouble.failures);
            let (state, hints) = (self.state.clone(), self.hints.clone());
            let work = catch_up(state, place.0, *consumer, failures, hints);
            // A task of its own, that shutdown waits for.
            let task = self.state.tasks.spawn(work);
            self.under_way.spawn(async move {
                // A panic is a fault of ours, and no reason to follow nobody any more.
                let lost = || Err(Failure::Fault(sqlx::Error::WorkerCrashed));
                (place, task.await.unwrap_or_else(|_| lost()))
            });
        }
    }

    fn note(&mut self, ended: Result<(Place, Result<(), Failure>), tokio::task::JoinError>) {
        let Ok((place, result)) = ended else { return };
        self.busy.remove(&place);
        let Err(failure) = result else {
            self.trouble.remove(&place);
            return;
        };
        let trouble = self.trouble.entry(place).or_insert(Trouble {
            failures: 0,
            until: Instant::now(),
        });
        trouble.failures = trouble.failures.saturating_add(1);
        let wait = AFTER_FAILURE * 2_u32.saturating_pow(trouble.failures.min(6) - 1);
        trouble.until = Instant::now() + wait;
        let ((store_id, consumer), failures) = (place, trouble.failures);
        tracing::warn!(store_id, consumer, failures, %failure, "events have to wait for their effects");
    }
}

/// How long there is no look after one that took so long.
fn rest_after(took: Duration) -> Duration {
    (took * RESTS).clamp(EVERY, LONGEST_REST)
}

/// The consumers that have events before them, of all stores.
async fn behind(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<(i64, String)>> {
    // The limits keep the planner from reading all events that nobody has numbered yet.
    let rows = sqlx::query!(
        "select c.store_id, c.consumer
        from event_consumers c
        cross join lateral (
            (
                select 1
                from event_feeds f
                where f.store_id = c.store_id and f.last_position > c.position
                limit 1
            )
            union all
            (
                select 1
                from events e
                where e.store_id = c.store_id and e.position is null
                limit 1
            )
            limit 1
        ) news",
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.store_id, row.consumer))
        .collect())
}

/// Lets a store's events have their effects, slice by slice; after failures in smaller ones, so that
/// what was too much at once gets done, and what can't be done holds up as little as possible.
async fn catch_up(
    state: State,
    store_id: i64,
    consumer: Consumer,
    failures: u32,
    hints: Hints,
) -> Result<(), Failure> {
    let most = (SLICE >> failures.min(9)).max(1);
    for _ in 0..MOST_SLICES {
        if state.shutdown.is_cancelled() {
            return Ok(());
        }
        let all_numbered = events::number(&state, store_id).await?;
        let mut transaction = Transaction::begin(&state.pool).await?;
        let connection = transaction.connection();
        let result = slice(&state, connection, store_id, &consumer, most).await;
        let (seen, left) = transaction.end(result).await?;
        metrics::counter!("keyfold_events_evaluated_total", "consumer" => consumer.name)
            .increment(seen.unsigned_abs());
        for id in left {
            hints.give(store_id, id);
        }
        if seen < most && all_numbered {
            return Ok(());
        }
    }
    Ok(())
}

/// The next events and their effects; how many they were, and the work that they left.
async fn slice(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    consumer: &Consumer,
    most: i64,
) -> sqlx::Result<(i64, Vec<Uuid>)> {
    let position = sqlx::query_scalar!(
        "select position
        from event_consumers
        where store_id = $1 and consumer = $2
        for update skip locked",
        store_id,
        consumer.name,
    )
    .fetch_optional(&mut *connection)
    .await?;
    // Somebody else is at it.
    let Some(position) = position else {
        return Ok((0, Vec::new()));
    };
    let seen = sqlx::query_as!(
        Seen,
        r#"select
            position as "position!", id, type as kind, resource, record_id, external_id, version,
            created_at
        from events
        where store_id = $1 and position > $2
        order by position
        limit $3"#,
        store_id,
        position,
        most,
    )
    .fetch_all(&mut *connection)
    .await?;
    let Some(last) = seen.last() else {
        return Ok((0, Vec::new()));
    };
    let left = (consumer.evaluate)(state, &mut *connection, store_id, &seen).await?;
    sqlx::query!(
        "update event_consumers
        set position = $3
        where store_id = $1 and consumer = $2",
        store_id,
        consumer.name,
        last.position,
    )
    .execute(connection)
    .await?;
    Ok((i64::try_from(seen.len()).unwrap_or(most), left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_rest_in_proportion_to_their_cost_but_never_for_long() {
        let ms = Duration::from_millis;
        for (took, rest) in [(0, 200), (9, 200), (20, 400), (60, 1_000), (16_000, 1_000)] {
            assert_eq!(rest_after(ms(took)), ms(rest), "{took} ms");
        }
    }
}
