//! What came of deliveries, written down: their states, the log, the run, the export; all of it in
//! one transaction.
//!
//! Two processes may work for one export when one of them was held up for longer than its lease.
//! Both make the same calls under the same keys, or calls with older and newer states of a record.
//! Who settles second sees it by the number of successes, which is no longer the one that it has
//! read. A failure then says nothing. A success is noted in the log, and the record waits again:
//! what the receiver got last may be the older state, which the next look sees by the log and puts
//! right. The same is done by one who settles twice because the commit was not answered; the next
//! look skips.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::counter;
use uuid::Uuid;

use super::definitions::{self, AsCalled};
use super::deliveries::{self, Become, Due, Locked, NOT_SETTLED};
use super::log::{self, NewEntry};
use super::results::{self, News, Outcome};
use super::runs;
use super::{KIND, schedule};
use crate::database::Connection;
use crate::engine::failure::Failure;
use crate::engine::transaction::Transaction;
use crate::outbox;
use crate::state::State;

/// How long to wait after the database failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// A delivery that was looked at.
#[derive(Clone, Debug)]
pub struct Settled {
    /// As it was read.
    pub due: Due,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
    /// When the export had last changed that was called.
    pub called_as: DateTime<Utc>,
    /// What came of it.
    pub came: Came,
}

/// What came of a delivery.
#[derive(Clone, Debug)]
pub enum Came {
    /// The receiver took it.
    Sent {
        /// The call's idempotency key.
        key: String,
        /// Of what was sent.
        content: [u8; 32],
        /// What the receiver answered.
        status: i16,
        /// For the entry in the log.
        entry_id: Uuid,
    },
    /// It had been sent before.
    Skipped,
    /// There is nothing to be sent any more.
    Nothing,
    /// The receiver did not take it.
    Failed {
        /// Why.
        code: String,
        /// What the receiver answered.
        status: Option<i16>,
        /// The receiver wants no call before.
        asked: Option<DateTime<Utc>>,
    },
}

impl Settled {
    fn result(&self) -> &'static str {
        match self.came {
            Came::Sent { .. } => "sent",
            Came::Skipped => "skipped",
            Came::Nothing => "nothing",
            Came::Failed { .. } => "failed",
        }
    }

    /// The time before which the receiver wants no call of any kind.
    fn hold(&self) -> Option<DateTime<Utc>> {
        match &self.came {
            Came::Failed {
                status: Some(429 | 503),
                asked,
                ..
            } => *asked,
            _ => None,
        }
    }

    /// The receiver is gone for good.
    fn is_gone(&self) -> bool {
        let gone = Some(410);
        matches!(&self.came, Came::Failed { status, .. } if *status == gone)
    }

    /// What the delivery becomes that somebody else has settled meanwhile.
    fn becomes_late(&self, now: &Locked, at: DateTime<Utc>) -> Option<Become> {
        matches!(self.came, Came::Sent { .. }).then(|| Become {
            record_id: self.due.record_id,
            state: "waiting",
            successes: now.successes + 1,
            attempt: 0,
            due_at: at,
            error_code: None,
            response_status: None,
            unsure: now.unsure,
            external_id: self.external_id.clone(),
            run_id: now.run_id,
        })
    }

    /// What the delivery becomes; none: it stays as somebody else has settled it.
    fn becomes(&self, now: &Locked, at: DateTime<Utc>) -> Option<Become> {
        let due = &self.due;
        let is_news = now.wanted != due.wanted;
        if now.successes != due.successes {
            return self.becomes_late(now, at);
        }
        let quiet = Become {
            record_id: due.record_id,
            state: if is_news { "waiting" } else { "idle" },
            successes: due.successes,
            attempt: 0,
            due_at: at,
            error_code: None,
            response_status: None,
            unsure: now.unsure,
            external_id: self.external_id.clone(),
            run_id: now.run_id.filter(|_| is_news),
        };
        match &self.came {
            Came::Sent { .. } => Some(Become {
                successes: due.successes + 1,
                unsure: false,
                ..quiet
            }),
            Came::Skipped | Came::Nothing => Some(quiet),
            Came::Failed {
                code,
                status,
                asked,
            } => {
                // A run that began meanwhile has begun everything anew.
                if now.attempt != due.attempt {
                    return None;
                }
                let attempt = due.attempt.saturating_add(1);
                let (state, attempt, wait) = match schedule::wait(attempt) {
                    _ if self.is_gone() => ("waiting", attempt, None),
                    Some(wait) => ("waiting", attempt, Some(wait)),
                    // What has changed since has its own schedule.
                    None if is_news => ("waiting", 1, schedule::wait(1)),
                    None => ("dead", attempt, None),
                };
                let due_at = at + wait.unwrap_or_default();
                Some(Become {
                    state,
                    attempt,
                    due_at: asked.map_or(due_at, |asked| asked.max(due_at)),
                    error_code: Some(code.clone()),
                    response_status: *status,
                    run_id: now.run_id,
                    ..quiet
                })
            }
        }
    }

    /// The receiver was told that the person was erased.
    fn is_notice(&self) -> bool {
        self.due.erased_at.is_some() && matches!(self.came, Came::Sent { .. } | Came::Skipped)
    }

    /// The entry of a call that was taken. Of a person who was erased meanwhile none is kept: the
    /// digest of what was sent could be guessed at.
    fn entry(&self, now: &Locked, number: i64) -> Option<NewEntry> {
        if now.erased_at.is_some() && self.due.erased_at.is_none() {
            return None;
        }
        let Came::Sent {
            key,
            content,
            status,
            entry_id,
        } = &self.came
        else {
            return None;
        };
        Some(NewEntry {
            number,
            key: key.clone(),
            resource: self.due.resource.clone(),
            record_id: self.due.record_id,
            external_id: self.external_id.clone(),
            content_sha256: *content,
            response_status: *status,
            run_id: self.due.run_id,
            id: *entry_id,
        })
    }

    fn news(&self) -> News {
        let (outcome, error_code, key) = match &self.came {
            Came::Sent { key, .. } => (Outcome::Sent, None, Some(key.clone())),
            Came::Skipped | Came::Nothing => (Outcome::Skipped, None, None),
            Came::Failed { code, .. } => (Outcome::Failed, Some(code.clone()), None),
        };
        News {
            record_id: self.due.record_id,
            outcome,
            error_code,
            key,
            external_id: self.external_id.clone(),
        }
    }
}

/// Writes down what came of deliveries of an export; waits for the database as long as that is
/// away. What Postgres refuses to hold is given up alone.
pub async fn settle(state: &State, store_id: i64, export_id: Uuid, settled: &[Settled]) {
    if settled.is_empty() {
        return;
    }
    if settle_all(state, store_id, export_id, settled)
        .await
        .is_err()
    {
        for one in settled {
            let alone = std::slice::from_ref(one);
            if settle_all(state, store_id, export_id, alone).await.is_err() {
                give_up(state, store_id, export_id, one).await;
            }
        }
    }
    for settled in settled {
        counter!("keyfold_export_calls_total", "result" => settled.result()).increment(1);
    }
}

/// The same for all of them or none.
///
/// # Errors
/// When Postgres refuses a row.
async fn settle_all(
    state: &State,
    store_id: i64,
    export_id: Uuid,
    settled: &[Settled],
) -> Result<(), Failure> {
    while let Err(failure) = settle_once(state, store_id, export_id, settled).await {
        tracing::warn!(store_id, %failure, "what came of an export's calls can't be noted yet");
        if failure.is_of_one_row() {
            return Err(failure);
        }
        tokio::time::sleep(AFTER_FAILURE).await;
    }
    Ok(())
}

async fn settle_once(
    state: &State,
    store_id: i64,
    export_id: Uuid,
    settled: &[Settled],
) -> Result<(), Failure> {
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    let noted = note(state, connection, store_id, export_id, settled).await;
    transaction.end(noted).await
}

/// Lets a delivery be dead whose call can't be noted: it would be made for ever.
async fn give_up(state: &State, store_id: i64, export_id: Uuid, one: &Settled) {
    while let Err(failure) = give_up_once(state, store_id, export_id, &one.due).await {
        tracing::error!(store_id, %failure, "a call of an export can't be given up");
        if failure.is_of_one_row() {
            return;
        }
        tokio::time::sleep(AFTER_FAILURE).await;
    }
}

async fn give_up_once(
    state: &State,
    store_id: i64,
    export_id: Uuid,
    due: &Due,
) -> Result<(), Failure> {
    let now = state.clock.now();
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    let given_up = async {
        let run_ids: Vec<Uuid> = due.run_id.into_iter().collect();
        let runs = runs::lock(&mut *connection, store_id, &run_ids).await?;
        deliveries::give_up(&mut *connection, store_id, export_id, due, now).await?;
        let news = News {
            record_id: due.record_id,
            outcome: Outcome::Failed,
            error_code: Some(NOT_SETTLED.to_owned()),
            key: None,
            external_id: None,
        };
        for run in runs {
            results::tell(
                &mut *connection,
                store_id,
                run,
                std::slice::from_ref(&news),
                now,
            )
            .await?;
        }
        Ok(())
    };
    let given_up = given_up.await;
    transaction.end(given_up).await
}

/// Locks in everybody's order: the export, runs, deliveries, results, the outbox.
async fn note(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    export_id: Uuid,
    settled: &[Settled],
) -> sqlx::Result<()> {
    let now = state.clock.now();
    // What was changed since is another receiver, or a mended one: only the last calls count.
    let called_as = settled.iter().map(|one| one.called_as).max();
    if let Some(updated_at) = called_as {
        let export = AsCalled {
            store_id,
            id: export_id,
            updated_at,
        };
        let last = || settled.iter().filter(|one| one.called_as == updated_at);
        if last().any(Settled::is_gone) {
            definitions::pause_gone(&mut *connection, export, now).await?;
        } else if let Some(until) = last().filter_map(Settled::hold).max() {
            definitions::hold_until(&mut *connection, export, until).await?;
        }
    }
    let mut run_ids: Vec<Uuid> = settled.iter().filter_map(|one| one.due.run_id).collect();
    run_ids.sort_unstable();
    run_ids.dedup();
    let runs = runs::lock(&mut *connection, store_id, &run_ids).await?;
    let record_ids: Vec<Uuid> = settled.iter().map(|one| one.due.record_id).collect();
    let locked = deliveries::lock(&mut *connection, store_id, export_id, &record_ids).await?;
    let locked: HashMap<Uuid, Locked> =
        locked.into_iter().map(|row| (row.record_id, row)).collect();
    let (mut rows, mut entries, mut is_late) = (Vec::new(), Vec::new(), false);
    let mut told: Vec<(Uuid, i64)> = Vec::new();
    let mut news: HashMap<Uuid, Vec<News>> = HashMap::new();
    for one in settled {
        let row = locked.get(&one.due.record_id);
        let Some((row, becomes)) = row.and_then(|row| Some((row, one.becomes(row, now)?))) else {
            continue;
        };
        is_late |= row.successes != one.due.successes;
        entries.extend(one.entry(row, becomes.successes));
        if one.is_notice() {
            told.push((becomes.record_id, becomes.successes));
        }
        rows.push(becomes);
        if let Some(run_id) = one.due.run_id.filter(|id| row.run_id == Some(*id)) {
            news.entry(run_id).or_default().push(one.news());
        }
    }
    deliveries::write(&mut *connection, store_id, export_id, &rows, now).await?;
    for run in runs {
        if let Some(news) = news.get(&run.id) {
            results::tell(&mut *connection, store_id, run, news, now).await?;
        }
    }
    log::append(&mut *connection, store_id, export_id, &entries, now).await?;
    log::forget_before(&mut *connection, store_id, export_id, &told).await?;
    if is_late {
        // Whoever has the lease may have found nothing to do before.
        outbox::wake(connection, store_id, KIND, export_id, now).await?;
    }
    Ok(())
}
