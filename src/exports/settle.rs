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
use sqlx::PgConnection;
use uuid::Uuid;

use super::definitions::{self, Stored};
use super::deliveries::{self, Become, Due, Locked};
use super::log::{self, NewEntry};
use super::results::{self, News, Outcome};
use super::runs;
use super::{KIND, schedule};
use crate::engine::failure::Failure;
use crate::engine::transaction::Transaction;
use crate::outbox;
use crate::state::State;

/// How often Postgres may refuse to note what came of calls.
const MOST_REFUSALS: u32 = 20;
/// How long to wait after the database failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// A delivery that was looked at.
#[derive(Clone, Debug)]
pub struct Settled {
    /// As it was read.
    pub due: Due,
    /// Its external id, where that names no person.
    pub external_id: Option<String>,
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
            external_id: self.external_id.clone(),
            run_id: now.run_id.filter(|_| is_news),
        };
        match &self.came {
            Came::Sent { .. } => Some(Become {
                successes: due.successes + 1,
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

    fn entry(&self) -> Option<NewEntry> {
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
/// away.
pub async fn settle(state: &State, export: &Stored, settled: &[Settled]) {
    if settled.is_empty() {
        return;
    }
    let mut refused = 0;
    while let Err(failure) = settle_once(state, export, settled).await {
        let store_id = export.store_id;
        tracing::warn!(store_id, %failure, "what came of an export's calls can't be noted yet");
        refused += u32::from(failure.is_of_one_row());
        if refused == MOST_REFUSALS {
            tracing::error!(store_id, %failure, "an export's calls will be made again");
            return;
        }
        tokio::time::sleep(AFTER_FAILURE).await;
    }
    for settled in settled {
        counter!("keyfold_export_calls_total", "result" => settled.result()).increment(1);
    }
}

async fn settle_once(state: &State, export: &Stored, settled: &[Settled]) -> Result<(), Failure> {
    let mut transaction = Transaction::begin(&state.pool).await?;
    let noted = note(state, transaction.connection(), export, settled).await;
    transaction.end(noted).await
}

/// Locks in everybody's order: the export, runs, deliveries, results, the outbox.
async fn note(
    state: &State,
    connection: &mut PgConnection,
    export: &Stored,
    settled: &[Settled],
) -> sqlx::Result<()> {
    let (store_id, now) = (export.store_id, state.clock.now());
    if settled.iter().any(Settled::is_gone) {
        definitions::pause_gone(&mut *connection, export, now).await?;
    } else if let Some(until) = settled.iter().filter_map(Settled::hold).max() {
        definitions::hold_until(&mut *connection, export, until).await?;
    }
    let mut run_ids: Vec<Uuid> = settled.iter().filter_map(|one| one.due.run_id).collect();
    run_ids.sort_unstable();
    run_ids.dedup();
    let runs = runs::lock(&mut *connection, store_id, &run_ids).await?;
    let record_ids: Vec<Uuid> = settled.iter().map(|one| one.due.record_id).collect();
    let locked = deliveries::lock(&mut *connection, store_id, export.id, &record_ids).await?;
    let locked: HashMap<Uuid, Locked> =
        locked.into_iter().map(|row| (row.record_id, row)).collect();
    let (mut rows, mut entries, mut is_late) = (Vec::new(), Vec::new(), false);
    let mut news: HashMap<Uuid, Vec<News>> = HashMap::new();
    for one in settled {
        let row = locked.get(&one.due.record_id);
        let Some((row, becomes)) = row.and_then(|row| Some((row, one.becomes(row, now)?))) else {
            continue;
        };
        rows.push(becomes);
        is_late |= row.successes != one.due.successes;
        entries.extend(one.entry());
        if let Some(run_id) = one.due.run_id.filter(|id| row.run_id == Some(*id)) {
            news.entry(run_id).or_default().push(one.news());
        }
    }
    deliveries::write(&mut *connection, store_id, export.id, &rows, now).await?;
    for run in runs {
        if let Some(news) = news.get(&run.id) {
            results::tell(&mut *connection, store_id, run, news, now).await?;
        }
    }
    log::append(&mut *connection, store_id, export.id, &entries, now).await?;
    if is_late {
        // Whoever has the lease may have found nothing to do before.
        outbox::wake(connection, store_id, KIND, export.id, now).await?;
    }
    Ok(())
}
