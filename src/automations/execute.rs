//! From a due run to its message: one transaction.

use std::sync::Arc;

use chrono::TimeDelta;
use uuid::Uuid;

use super::about;
use super::evaluate::known;
use super::input::Reentry;
use super::rules::{self, Trigger};
use super::runs::{self, Due, Ended};
use crate::database::Connection;
use crate::engine::failure::Failure;
use crate::engine::transaction::Transaction;
use crate::error::Error;
use crate::messaging::contacts::{self, Known};
use crate::messaging::input::{Wanted, What};
use crate::messaging::send::{self, Refusal};
use crate::outbox::{self, Handler, Hints, Leased, Settlement, Work};
use crate::resources::customers;
use crate::state::State;
use crate::values::{Phone, parse};

/// How long the record that names the recipient is waited for.
const MOST_WAIT: TimeDelta = TimeDelta::hours(24);
/// How soon it is looked for again; later after as long as it has been waited for, at most:
const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(1);
const MOST_PAUSE: TimeDelta = TimeDelta::hours(1);
/// When a run is tried again after the database failed; later the older it is, at most:
const AFTER_FAILURE: TimeDelta = TimeDelta::seconds(1);
const MOST_AFTER_FAILURE: TimeDelta = TimeDelta::minutes(10);

/// Executes runs.
#[must_use]
pub fn handler(hints: Hints) -> Handler {
    Arc::new(move |state, work| {
        let hints = hints.clone();
        Box::pin(async move { execute(&state, &hints, work).await })
    })
}

async fn execute(state: &State, hints: &Hints, work: Work) {
    let Work { store_id, rows, .. } = work;
    for row in &rows {
        if let Err(failure) = execute_one(state, hints, store_id, row).await {
            tracing::warn!(store_id, run_id = %row.id, %failure, "a run has to wait");
            let now = state.clock.now();
            let late = now - row.due_at;
            let due_at = now + late.clamp(AFTER_FAILURE, MOST_AFTER_FAILURE);
            let (pool, lease) = (&state.pool, row.lease_id);
            let back = outbox::put_back(pool, store_id, lease, &[(row.id, due_at)], None).await;
            if let Err(error) = back {
                tracing::debug!(%error, "the run waits until its lease has run out");
            }
        }
    }
}

/// What a due run comes to.
enum Verdict {
    /// It ends like this.
    Ends(Ended),
    /// It has to wait, for so long.
    Waits(TimeDelta),
}

async fn execute_one(
    state: &State,
    hints: &Hints,
    store_id: i64,
    row: &Leased,
) -> Result<(), Failure> {
    let mut transaction = Transaction::begin(&state.pool).await?;
    let result = end_one(state, transaction.connection(), store_id, row).await;
    if let Some(message_id) = transaction.end(result).await? {
        hints.give(store_id, message_id);
    }
    Ok(())
}

/// Ends a run, if that can be done now; gives the message that was accepted.
///
/// The customer is held first, before the run, as whoever erases them does: so a person is not erased
/// between our look at them and their message.
async fn end_one(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    row: &Leased,
) -> sqlx::Result<Option<Uuid>> {
    let now = state.clock.now();
    let record = runs::record(&mut *connection, store_id, row.id).await?;
    let held = match &record {
        Some((resource, id)) => customer_of(connection, store_id, resource, *id).await?,
        None => None,
    };
    if let Some(customer_id) = held {
        customers::hold(connection, store_id, customer_id).await?;
    }
    // Ended already by somebody whose lease ran out: only its place in the outbox is left.
    let Some(run) = runs::lock(&mut *connection, store_id, row.id).await? else {
        outbox::remove(connection, store_id, &[row.id]).await?;
        return Ok(None);
    };
    let verdict = judge(state, connection, store_id, &run, held).await?;
    let (settlement, message_id) = match verdict {
        Verdict::Waits(wait) => {
            let again = Settlement::Again {
                due_at: now + wait,
                code: Some("recipient_unknown".to_owned()),
            };
            (again, None)
        }
        Verdict::Ends(ended) => {
            runs::end(connection, store_id, row.id, &ended, now).await?;
            let is_sent = matches!(ended, Ended::Sent { .. });
            (Settlement::Done, is_sent.then_some(run.message_id))
        }
    };
    outbox::settle(connection, store_id, row.lease_id, &[(row.id, settlement)]).await?;
    Ok(message_id)
}

async fn customer_of(
    connection: &mut Connection,
    store_id: i64,
    resource: &str,
    id: Uuid,
) -> sqlx::Result<Option<Uuid>> {
    Ok(
        match about::look(connection, store_id, resource, id).await? {
            Some(about) => about.person.and_then(|person| person.customer_id),
            None => None,
        },
    )
}

/// Looks again at everything that a run depends on, and accepts its message if it still may be.
async fn judge(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    run: &Due,
    held: Option<Uuid>,
) -> sqlx::Result<Verdict> {
    let ends = |ended| Ok(Verdict::Ends(ended));
    let skipped = |reason| ends(Ended::Skipped(reason));
    let Some(rule) = rules::by_id(&mut *connection, store_id, run.automation_id).await? else {
        return skipped("automation_deleted");
    };
    if rule.paused {
        return skipped("automation_paused");
    }
    let (phone, values) = match (&run.call, &run.record) {
        (Some(call), _) if matches!(rule.trigger, Trigger::Webhook(_)) => {
            (call.phone.clone(), Ok(call.variables.clone()))
        }
        // It was set off by a trigger that the automation has no more.
        (Some(_), _) => return skipped("condition_no_longer_true"),
        (None, None) => return skipped("recipient_erased"),
        (None, Some((resource, id))) => {
            let Some(about) = about::look(connection, store_id, resource, *id).await? else {
                return skipped("recipient_erased");
            };
            let values = match parse(about.body.as_bytes()) {
                Ok(record) if rule.trigger.is_met(resource, &record) => {
                    rule.variables.values(&record)
                }
                _ => return skipped("condition_no_longer_true"),
            };
            let age = state.clock.now() - run.created_at;
            let Some(person) = about.person else {
                if age < MOST_WAIT {
                    return Ok(Verdict::Waits(age.clamp(LOOK_AGAIN, MOST_PAUSE)));
                }
                return ends(Ended::failed("recipient_unknown", None));
            };
            // Somebody else than a moment ago, whom nobody holds.
            if person.customer_id != held {
                return Ok(Verdict::Waits(TimeDelta::zero()));
            }
            let Some(phone) = person.phone else {
                return skipped("recipient_erased");
            };
            (phone, values)
        }
    };
    let contact = runs::contact(store_id, &phone);
    // Whom it is about was not known, or was another one, when the earlier runs were looked at.
    if run.contact.as_deref() != Some(&contact) && matches!(rule.reentry, Reentry::Cooldown(_)) {
        let (id, now) = (state.clock.new_id(), state.clock.now());
        // The lock of the contact: one after the other.
        contacts::upsert(connection, store_id, &phone, &Known::default(), id, now).await?;
        let earlier = known(state, connection, store_id, &rule, &[&contact]).await?;
        if !earlier.is_empty() {
            return skipped("reentry");
        }
    }
    let values = match values {
        Ok(values) => values,
        Err(missing) => return ends(Ended::failed(missing.code, Some(missing.name))),
    };
    let wanted = Wanted {
        to: Phone::from_stored(phone),
        what: What::Template {
            template_id: rule.template_id,
            variables: values,
            name: None,
            email: None,
        },
    };
    ends(accept(state, connection, store_id, run, &wanted, contact).await?)
}

/// Accepts the message of a run.
async fn accept(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    run: &Due,
    wanted: &Wanted,
    contact: Vec<u8>,
) -> sqlx::Result<Ended> {
    let queued = send::queue(state, connection, store_id, wanted, run.message_id).await;
    Ok(match queued {
        Ok(Ok(_)) => Ended::Sent { contact },
        Ok(Err(Error::ContactOptedOut)) => Ended::Skipped("contact_opted_out"),
        Err(Refusal::Caller(Error::Invalid(faults))) => {
            let names: Vec<&str> = faults.as_map().keys().map(String::as_str).collect();
            Ended::failed("variables_invalid", Some(names.join(", ")))
        }
        Ok(Err(error)) | Err(Refusal::Caller(error)) => Ended::failed(error.code(), None),
        Err(Refusal::Database(error)) => return Err(error),
    })
}
