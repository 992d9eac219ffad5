//! From the outbox to the provider: a message is handed over at most once.
//!
//! ```text
//!  leased ─ turn ─ begin (committed) ─ bytes out ─ answer in ─ settle (committed)
//!     │       │           │                │           │            │
//!   killed here: leased again, sent        │           │            └ killed here: done
//!                         └── killed here: nobody knows ┘
//!                             → unknown, never sent again by itself;
//!                               a status event that carries our reference settles it
//! ```
//!
//! The mark that [`outbox::begin`] commits is the line: before it nothing can have been sent, behind
//! it something may have been. It is written at the last moment, after the message's turn has come.
//! An answer that says for certain that the message was not taken leads back before the line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use metrics::counter;
use uuid::Uuid;

use super::channels::{self, Access, ProviderName};
use super::messages::{self, Content, News, Outgoing};
use super::pace::{self, Turn, Waiting};
use super::providers::whatsapp::Api;
use super::providers::{Handed, Handing, Provider, Reason};
use super::status::{Status, Step};
use super::templates::{self, Slots};
use crate::database::Connection;
use crate::engine::failure::Failure;
use crate::engine::transaction::Transaction;
use crate::outbox::{self, Handler, Leased, Settlement, Work};
use crate::state::State;

/// Messages, in the outbox.
pub const KIND: &str = "message";
/// Messages of one channel under way in a process.
/// At 80 a second as many as are under way when an answer takes a second and more.
const MOST_OF_CHANNEL: usize = 100;
/// Why a message failed whose recipient was erased before it was sent.
pub const RECIPIENT_ERASED: &str = "recipient_erased";
/// A message that could not be handed over for so long is given up: what comes a day late is not
/// wanted any more.
const MOST_AGE: TimeDelta = TimeDelta::hours(24);
/// Waits between tries of what was not sent, each with jitter; the last one goes on.
const BACKOFF_S: [u32; 8] = [5, 15, 60, 300, 900, 1_800, 3_600, 7_200];
/// How long a message waits whose channel can't be used as it is set.
const UNUSABLE: TimeDelta = TimeDelta::minutes(1);
/// A pause is looked at again after this time: it may have been ended.
const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(1);
/// How often Postgres may refuse to note what came of messages.
const MOST_REFUSALS: u32 = 20;
/// How long to wait after the database failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Hands messages over.
#[must_use]
pub fn handler(api: Api) -> Handler {
    let courier = Courier {
        api,
        under_way: UnderWay::default(),
    };
    Arc::new(move |state, work| {
        let courier = courier.clone();
        Box::pin(async move {
            let (store_id, rows) = (work.store_id, work.rows.clone());
            if let Err(error) = courier.deliver(&state, work).await {
                tracing::warn!(%error, "messages have to wait: the database can't be asked");
                give_back(&state, store_id, &rows).await;
            }
        })
    })
}

/// Gives back what was not begun, so that nobody has to wait until the leases have run out.
async fn give_back(state: &State, store_id: i64, rows: &[Leased]) {
    let Some(lease_id) = rows.first().map(|row| row.lease_id) else {
        return;
    };
    let due_at = state.clock.now() + TimeDelta::seconds(1);
    let rows = rows.iter().map(|row| (row.id, due_at)).collect();
    if let Err(error) = put_back(state, store_id, lease_id, rows, None).await {
        tracing::warn!(%error, "messages wait until their leases have run out");
    }
}

#[derive(Clone)]
struct Courier {
    api: Api,
    under_way: UnderWay,
}

impl Courier {
    async fn deliver(&self, state: &State, work: Work) -> sqlx::Result<()> {
        let Work {
            store_id,
            rows,
            mut room,
        } = work;
        let Some(lease_id) = rows.first().map(|row| row.lease_id) else {
            return Ok(());
        };
        let mut batch = Batch {
            store_id,
            lease_id,
            channel_set_at: None,
        };
        let (lost, waiting): (Vec<Leased>, Vec<Leased>) =
            rows.into_iter().partition(|row| row.begun);
        give_up_lost(state, batch, &lost).await;
        // One look at the channel: what is decided by it and what is sent through it are the same.
        let key = state.config.secret_key.as_ref();
        let access = channels::access(&state.pool, key, store_id).await?;
        let waiting = sift(state, batch, access.provider(), waiting).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let wait = |until, code: &'static str| {
            let rows = waiting.iter().map(|(row, _)| (row.id, until)).collect();
            put_back(state, store_id, lease_id, rows, Some(code))
        };
        let now = state.clock.now();
        let paused_until = channels::paused_until(&state.pool, store_id).await?;
        if let Some(until) = paused_until.filter(|until| *until > now) {
            return wait(until.min(now + LOOK_AGAIN), "channel_paused").await;
        }
        let provider = match access {
            Access::Sandbox => Provider::Sandbox,
            Access::Whatsapp {
                phone_number_id,
                token: Ok(token),
                set_at,
                ..
            } => {
                batch.channel_set_at = Some(set_at);
                Provider::Whatsapp(self.api.number(phone_number_id, token))
            }
            Access::Whatsapp {
                token: Err(error), ..
            } => {
                tracing::error!(store_id, %error, "messages have to wait");
                return wait(now + UNUSABLE, "access_token_unusable").await;
            }
        };
        let slots = slots(state, store_id, &waiting).await?;
        if provider.is_repeatable() {
            hand_over(state, &provider, batch, &waiting, &slots).await;
            return Ok(());
        }
        let all = waiting.len();
        let turns = self.turns(state, batch, waiting).await?;
        room.give_back(all - turns.len());
        let (provider, slots) = (&provider, &slots);
        join_all(turns.into_iter().map(async |(at, place, one)| {
            let wait = at - state.clock.now();
            tokio::time::sleep(wait.to_std().unwrap_or_default()).await;
            hand_over(state, provider, batch, &[one], slots).await;
            drop(place);
        }))
        .await;
        Ok(())
    }

    /// The messages whose turn is near, each with its place among those under way; the others go
    /// back until theirs.
    async fn turns(
        &self,
        state: &State,
        batch: Batch,
        waiting: Vec<(Leased, Outgoing)>,
    ) -> sqlx::Result<Vec<(DateTime<Utc>, Place, (Leased, Outgoing))>> {
        let Batch {
            store_id, lease_id, ..
        } = batch;
        let mut places = self.under_way.take(store_id, waiting.len());
        let mut transaction = Transaction::begin(&state.pool).await?;
        let now = state.clock.now();
        let contacts: Vec<Waiting> = waiting
            .iter()
            .map(|(row, message)| Waiting::of(row, message.contact_id, now))
            .collect();
        let connection = transaction.connection();
        let turns = match pace::turns(connection, store_id, &contacts, places.len(), now).await {
            Ok(turns) => turns,
            Err(error) => {
                transaction.rollback().await;
                return Err(error);
            }
        };
        transaction.commit().await?;
        let (mut near, mut later) = (Vec::new(), Vec::new());
        for (one, turn) in waiting.into_iter().zip(turns) {
            match (turn, places.pop()) {
                (Turn::At(at), Some(place)) => near.push((at, place, one)),
                (Turn::At(at) | Turn::Later(at), place) => {
                    places.extend(place);
                    later.push((one.0.id, at));
                }
            }
        }
        if !later.is_empty() {
            let code = Some(outbox::PACED);
            put_back(state, store_id, lease_id, later, code).await?;
        }
        Ok(near)
    }
}

/// What is leased together.
#[derive(Clone, Copy)]
struct Batch {
    store_id: i64,
    lease_id: Uuid,
    /// Since when the channel is as it was when it was looked at.
    channel_set_at: Option<DateTime<Utc>>,
}

/// The messages that can still be sent. Those that can't are settled.
async fn sift(
    state: &State,
    batch: Batch,
    present: ProviderName,
    rows: Vec<Leased>,
) -> sqlx::Result<Vec<(Leased, Outgoing)>> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let found = messages::outgoing(&state.pool, batch.store_id, &ids).await?;
    let mut found: HashMap<Uuid, Outgoing> = found
        .into_iter()
        .map(|message| (message.id, message))
        .collect();
    let now = state.clock.now();
    let (mut fit, mut settled) = (Vec::new(), Vec::new());
    for row in rows {
        match found.remove(&row.id) {
            None => settled.push(Settled::erased(state, row.id)),
            Some(message) if message.provider != present.as_str() => {
                let words = "the store's channel was changed before it was sent";
                settled.push(Settled::dead(state, row.id, "channel_changed", Some(words)));
            }
            Some(message) if message.opted_out => {
                let words = "the person asked for no more messages before it was sent";
                settled.push(Settled::dead(
                    state,
                    row.id,
                    "contact_opted_out",
                    Some(words),
                ));
            }
            Some(_) if now - row.created_at > MOST_AGE => {
                let words = "it could not be handed over within 24 hours";
                settled.push(Settled::dead(
                    state,
                    row.id,
                    "not_sent_in_time",
                    Some(words),
                ));
            }
            Some(message) => fit.push((row, message)),
        }
    }
    settle(state, batch, &settled).await;
    Ok(fit)
}

async fn put_back(
    state: &State,
    store_id: i64,
    lease_id: Uuid,
    rows: Vec<(Uuid, DateTime<Utc>)>,
    code: Option<&str>,
) -> sqlx::Result<()> {
    outbox::put_back(&state.pool, store_id, lease_id, &rows, code).await
}

/// Where the provider wants the variables of these messages' templates.
async fn slots(
    state: &State,
    store_id: i64,
    waiting: &[(Leased, Outgoing)],
) -> sqlx::Result<HashMap<i64, Slots>> {
    let mut ids: Vec<i64> = waiting
        .iter()
        .filter_map(|(_, message)| template_id(message))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let slots = templates::slots(&state.pool, store_id, &ids).await?;
    Ok(slots.into_iter().collect())
}

fn template_id(message: &Outgoing) -> Option<i64> {
    match &message.content {
        Content::Template { template_id, .. } => Some(*template_id),
        _ => None,
    }
}

/// Hands messages over, and settles what came of it. Never fails: what can't be settled now is
/// settled later.
async fn hand_over(
    state: &State,
    provider: &Provider,
    batch: Batch,
    messages: &[(Leased, Outgoing)],
    slots: &HashMap<i64, Slots>,
) {
    let Batch {
        store_id, lease_id, ..
    } = batch;
    let ours: Vec<&(Leased, Outgoing)> = if provider.is_repeatable() {
        messages.iter().collect()
    } else {
        let ids: Vec<Uuid> = messages.iter().map(|(row, _)| row.id).collect();
        let now = state.clock.now();
        match outbox::begin(&state.pool, store_id, &ids, lease_id, now).await {
            Ok(begun) => messages
                .iter()
                .filter(|(row, _)| begun.contains(&row.id))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "a message has to wait: its beginning can't be noted");
                // It may be marked all the same, unless there was no connection to do it by; then it
                // ends as unknown, though nothing was sent.
                if matches!(error, sqlx::Error::PoolTimedOut) {
                    let rows: Vec<Leased> = messages.iter().map(|(row, _)| row.clone()).collect();
                    give_back(state, store_id, &rows).await;
                }
                return;
            }
        }
    };
    let handed = join_all(ours.iter().map(|(row, message)| {
        let slots = template_id(message).and_then(|id| slots.get(&id));
        provider.hand_over(Handing {
            message,
            attempt: row.attempt + 1,
            slots,
        })
    }))
    .await;
    let settled: Vec<Settled> = ours
        .iter()
        .zip(handed)
        .map(|((row, _), handed)| Settled::of(state, row, handed))
        .collect();
    settle(state, batch, &settled).await;
}

/// What is to be written down about one message.
struct Settled {
    id: Uuid,
    settlement: Settlement,
    news: Option<News>,
    /// Nothing of the channel leaves before, for this reason.
    pause: Option<(DateTime<Utc>, String)>,
    result: &'static str,
}

impl Settled {
    fn quietly(id: Uuid, settlement: Settlement) -> Self {
        Self {
            id,
            settlement,
            news: None,
            pause: None,
            result: "dropped",
        }
    }

    /// With what the message has become.
    fn told(
        state: &State,
        id: Uuid,
        settlement: Settlement,
        result: &'static str,
        steps: Vec<Step>,
    ) -> Self {
        let news = News {
            id,
            event_id: state.clock.new_id(),
            steps,
            provider_message_id: None,
            requeue: false,
        };
        Self {
            news: Some(news),
            result,
            ..Self::quietly(id, settlement)
        }
    }

    /// Nobody is there any more whom it could be sent to.
    fn erased(state: &State, id: Uuid) -> Self {
        let step = Step::because(Status::Failed, state.clock.now(), RECIPIENT_ERASED, None);
        Self::told(state, id, Settlement::Done, "erased", vec![step])
    }

    /// Given up.
    fn dead(state: &State, id: Uuid, code: &str, detail: Option<&str>) -> Self {
        let step = Step::because(Status::Failed, state.clock.now(), code, detail);
        let dead = Settlement::Dead {
            code: code.to_owned(),
        };
        Self::told(state, id, dead, "failed", vec![step])
    }

    /// It may have been sent.
    fn unknown(state: &State, id: Uuid, reason: &Reason) -> Self {
        let now = state.clock.now();
        let detail = reason.detail.as_deref();
        let step = Step::because(Status::Unknown, now, &reason.code, detail);
        let unknown = Settlement::Unknown {
            code: reason.code.clone(),
        };
        Self::told(state, id, unknown, "unknown", vec![step])
    }

    fn of(state: &State, row: &Leased, handed: Handed) -> Self {
        let now = state.clock.now();
        match handed {
            Handed::Accepted {
                provider_message_id,
                statuses,
            } => {
                let steps = statuses.iter().map(|status| Step::plain(*status, now));
                let steps = steps.collect();
                let mut settled = Self::told(state, row.id, Settlement::Done, "sent", steps);
                if let Some(news) = &mut settled.news {
                    news.provider_message_id = Some(provider_message_id);
                }
                settled
            }
            Handed::Refused(reason) => {
                Self::dead(state, row.id, &reason.code, reason.detail.as_deref())
            }
            Handed::NotSent { reason, after } => {
                let due_at = now + backoff(row.attempt, after);
                let code = Some(reason.code);
                let again = Settlement::Again { due_at, code };
                Self {
                    result: "not_sent",
                    ..Self::quietly(row.id, again)
                }
            }
            Handed::Paused { reason, pause } => {
                let until = now + TimeDelta::from_std(pause).unwrap_or(LOOK_AGAIN);
                let again = Settlement::Again {
                    due_at: until.min(now + LOOK_AGAIN),
                    code: Some(reason.code.clone()),
                };
                Self {
                    pause: Some((until, reason.code)),
                    result: "paused",
                    ..Self::quietly(row.id, again)
                }
            }
            Handed::Unknown(reason) => Self::unknown(state, row.id, &reason),
        }
    }
}

/// How long to wait after so many earlier attempts, with a fifth of it more or less.
fn backoff(attempt: i32, after: Option<Duration>) -> TimeDelta {
    let step = usize::try_from(attempt).unwrap_or(0);
    let seconds = BACKOFF_S[step.min(BACKOFF_S.len() - 1)];
    let milliseconds = i64::from(seconds) * rand::random_range(800..=1_200);
    let after = after.and_then(|after| TimeDelta::from_std(after).ok());
    TimeDelta::milliseconds(milliseconds).max(after.unwrap_or_default())
}

/// Messages whose worker was killed, or lost the database for longer than its lease, after it began.
async fn give_up_lost(state: &State, batch: Batch, lost: &[Leased]) {
    let reason = Reason {
        code: "interrupted".to_owned(),
        detail: Some("the process ended while it was sending: the provider may have it".to_owned()),
    };
    let settled: Vec<Settled> = lost
        .iter()
        .map(|row| Settled::unknown(state, row.id, &reason))
        .collect();
    settle(state, batch, &settled).await;
}

/// Writes down what came of messages, in one transaction; waits for the database as long as that is
/// away. Doing it twice, because a commit was not answered, is no harm: what was accepted is known
/// then, and anything else is written only by who has the lease.
async fn settle(state: &State, batch: Batch, settled: &[Settled]) {
    if settled.is_empty() {
        return;
    }
    let mut refused = 0;
    while let Err(failure) = settle_once(state, batch, settled).await {
        let store_id = batch.store_id;
        tracing::warn!(store_id, %failure, "what came of messages can't be noted yet");
        refused += u32::from(failure.is_of_one_row());
        if refused == MOST_REFUSALS {
            tracing::error!(store_id, %failure, "what came of messages is left to their leases");
            return;
        }
        tokio::time::sleep(AFTER_FAILURE).await;
    }
    for settled in settled {
        counter!("keyfold_messages_settled_total", "result" => settled.result).increment(1);
    }
}

async fn settle_once(state: &State, batch: Batch, settled: &[Settled]) -> Result<(), Failure> {
    let mut transaction = Transaction::begin(&state.pool).await?;
    let noted = note(state, transaction.connection(), batch, settled).await;
    transaction.end(noted).await
}

async fn note(
    state: &State,
    connection: &mut Connection,
    batch: Batch,
    settled: &[Settled],
) -> sqlx::Result<()> {
    let Batch {
        store_id, lease_id, ..
    } = batch;
    let settlements: Vec<(Uuid, Settlement)> = settled
        .iter()
        .map(|settled| (settled.id, settled.settlement.clone()))
        .collect();
    let ours = outbox::settle(connection, store_id, lease_id, &settlements).await?;
    let news: Vec<News> = settled
        .iter()
        .filter(|settled| ours.contains(&settled.id))
        .filter_map(|settled| settled.news.clone())
        .collect();
    messages::apply(connection, store_id, &news, state.clock.now()).await?;
    // What an old token was refused for says nothing of a new one.
    if let Some(set_at) = batch.channel_set_at {
        for (until, code) in settled.iter().filter_map(|settled| settled.pause.as_ref()) {
            channels::pause(&mut *connection, store_id, set_at, *until, code).await?;
        }
    }
    Ok(())
}

/// How many messages of each channel are under way in this process.
#[derive(Clone, Default)]
struct UnderWay(Arc<Mutex<HashMap<i64, usize>>>);

/// One message under way.
struct Place {
    under_way: UnderWay,
    store_id: i64,
}

impl UnderWay {
    /// As many places as there are, up to so many.
    fn take(&self, store_id: i64, wanted: usize) -> Vec<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(store_id).or_default();
        let given = wanted.min(MOST_OF_CHANNEL.saturating_sub(*count));
        *count += given;
        drop(counts);
        (0..given)
            .map(|_| Place {
                under_way: self.clone(),
                store_id,
            })
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = self.under_way.0.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.store_id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.store_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_heed_the_provider() {
        for (attempt, seconds) in [(0, 5), (1, 15), (2, 60), (7, 7_200), (100, 7_200)] {
            let wait = backoff(attempt, None).num_milliseconds();
            let around = (seconds * 800)..=(seconds * 1_200);
            assert!(around.contains(&wait), "{attempt}: {wait}");
        }
        let asked = backoff(0, Some(Duration::from_secs(100)));
        assert_eq!(asked, TimeDelta::seconds(100));
    }

    #[test]
    fn a_channel_has_so_many_places_and_gets_them_back() {
        let under_way = UnderWay::default();
        let first = under_way.take(1, MOST_OF_CHANNEL - 2);
        assert_eq!(first.len(), MOST_OF_CHANNEL - 2);
        assert_eq!(under_way.take(2, 1_000).len(), MOST_OF_CHANNEL);
        assert_eq!(under_way.take(1, 30).len(), 2);
        drop(first);
        assert_eq!(under_way.take(1, 1_000).len(), MOST_OF_CHANNEL);
        assert!(under_way.0.lock().expect("no panic").is_empty());
    }
}
