//! From a due run to its message: one transaction.

use std::sync::Arc;

use chrono::TimeDelta;
use sqlx::PgConnection;

use super::evaluate::{known, own_phone};
use super::input::Reentry;
use super::rules::{self, Rule, Trigger};
use super::runs::{self, Due, Ended};
use crate::engine::PhoneAt;
use crate::engine::failure::Failure;
use crate::engine::transaction::Transaction;
use crate::error::Error;
use crate::messaging::input::{Wanted, What};
use crate::messaging::send::{self, Refusal};
use crate::outbox::{self, Handler, Hints, Leased, Settlement, Work};
use crate::resources::catalog::{self, Entry};
use crate::state::State;
use crate::values::{Node, Phone, Value, parse};

/// How long the record that names the recipient is waited for.
const MOST_WAIT: TimeDelta = TimeDelta::hours(24);
/// How often it is looked for.
const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(1);
/// When a run is tried again after the database failed.
const AFTER_FAILURE: TimeDelta = TimeDelta::seconds(1);

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
            let due_at = state.clock.now() + AFTER_FAILURE;
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
    /// Whom it is about is not known yet.
    Waits,
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
async fn end_one(
    state: &State,
    connection: &mut PgConnection,
    store_id: i64,
    row: &Leased,
) -> sqlx::Result<Option<uuid::Uuid>> {
    let now = state.clock.now();
    // Ended already by somebody whose lease ran out: only its place in the outbox is left.
    let Some(run) = runs::lock(&mut *connection, store_id, row.id).await? else {
        outbox::remove(connection, store_id, &[row.id]).await?;
        return Ok(None);
    };
    let settlement = match judge(state, connection, store_id, &run).await? {
        Verdict::Waits => Settlement::Again {
            due_at: now + LOOK_AGAIN,
            code: Some("recipient_unknown".to_owned()),
        },
        Verdict::Ends(ended) => {
            runs::end(connection, store_id, row.id, &ended, now).await?;
            outbox::settle(
                connection,
                store_id,
                row.lease_id,
                &[(row.id, Settlement::Done)],
            )
            .await?;
            let is_sent = matches!(ended, Ended::Sent { .. });
            return Ok(is_sent.then_some(run.message_id));
        }
    };
    outbox::settle(connection, store_id, row.lease_id, &[(row.id, settlement)]).await?;
    Ok(None)
}

/// Looks again at everything that a run depends on, and accepts its message if it still may be.
async fn judge(
    state: &State,
    connection: &mut PgConnection,
    store_id: i64,
    run: &Due,
) -> sqlx::Result<Verdict> {
    let skipped = |reason| Ok(Verdict::Ends(Ended::Skipped(reason)));
    let Some(rule) = rules::by_id(&mut *connection, store_id, run.automation_id).await? else {
        return skipped("automation_deleted");
    };
    if rule.paused {
        return skipped("automation_paused");
    }
    let (phone, values) = match (&run.call, &run.record) {
        (Some(call), _) => (call.phone.clone(), Ok(call.variables.clone())),
        (None, Some((resource, id))) => {
            let entry = catalog::entry(resource);
            let Some(entry) = entry else {
                return skipped("condition_no_longer_true");
            };
            let found = entry.by_ids(connection, store_id, &[*id]).await?;
            let Some(snapshot) = found.into_iter().next() else {
                return skipped("recipient_erased");
            };
            let (phone, values) = {
                let Ok(record) = parse(snapshot.body.as_bytes()) else {
                    return skipped("condition_no_longer_true");
                };
                if !still_matches(&rule, &record) {
                    return skipped("condition_no_longer_true");
                }
                let whom = match entry.phone {
                    PhoneAt::Pointer(_) => Whom::of(own_phone(entry, &record)),
                    PhoneAt::Other { resource, member } => Whom::Elsewhere {
                        resource,
                        segment: text(&record, member),
                    },
                };
                (whom, rule.variables.values(&record))
            };
            let phone = match phone {
                Whom::Known(phone) => phone,
                Whom::Erased => return skipped("recipient_erased"),
                Whom::Elsewhere { resource, segment } => {
                    match elsewhere(connection, store_id, resource, &segment).await? {
                        Some(Whom::Known(phone)) => phone,
                        Some(_) => return skipped("recipient_erased"),
                        None if state.clock.now() - run.created_at < MOST_WAIT => {
                            return Ok(Verdict::Waits);
                        }
                        None => {
                            return Ok(Verdict::Ends(Ended::Failed {
                                reason: "recipient_unknown".to_owned(),
                                detail: None,
                            }));
                        }
                    }
                }
            };
            (phone, values)
        }
        (None, None) => return skipped("recipient_erased"),
    };
    let contact = runs::contact(store_id, &phone);
    // Whom it is about was not known when the earlier runs were looked at.
    if !run.has_contact && matches!(rule.reentry, Reentry::Cooldown(_)) {
        let earlier = known(state, connection, store_id, &rule, &[&contact]).await?;
        if !earlier.is_empty() {
            return skipped("reentry");
        }
    }
    let values = match values {
        Ok(values) => values,
        Err(missing) => {
            return Ok(Verdict::Ends(Ended::Failed {
                reason: missing.code.to_owned(),
                detail: Some(missing.name),
            }));
        }
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
    let ended = accept(state, connection, store_id, run, &wanted, contact).await?;
    Ok(Verdict::Ends(ended))
}

/// Accepts the message of a run.
async fn accept(
    state: &State,
    connection: &mut PgConnection,
    store_id: i64,
    run: &Due,
    wanted: &Wanted,
    contact: Vec<u8>,
) -> sqlx::Result<Ended> {
    let failed = |reason: &str, detail| Ended::Failed {
        reason: reason.to_owned(),
        detail,
    };
    let queued = send::queue(state, connection, store_id, wanted, run.message_id).await;
    Ok(match queued {
        Ok(Ok(_)) => Ended::Sent { contact },
        Ok(Err(Error::ContactOptedOut)) => Ended::Skipped("contact_opted_out"),
        Ok(Err(error)) => failed(error.code(), None),
        Err(Refusal::Caller(Error::Invalid(faults))) => {
            let names: Vec<&str> = faults.as_map().keys().map(String::as_str).collect();
            failed("variables_invalid", Some(names.join(", ")))
        }
        Err(Refusal::Caller(error)) => failed(error.code(), None),
        Err(Refusal::Database(error)) => return Err(error),
    })
}

/// The person whom a record is about.
enum Whom {
    /// Their number.
    Known(String),
    /// Nobody any more.
    Erased,
    /// Who stands in another record.
    Elsewhere {
        /// Its resource.
        resource: &'static str,
        /// What names it.
        segment: String,
    },
}

impl Whom {
    fn of(phone: Option<&str>) -> Self {
        phone.map_or(Self::Erased, |phone| Self::Known(phone.to_owned()))
    }
}

fn still_matches(rule: &Rule, record: &Node<'_>) -> bool {
    match &rule.trigger {
        Trigger::Change { condition, .. } => condition.matches(record),
        Trigger::Webhook(_) => false,
    }
}

fn text(record: &Node<'_>, member: &str) -> String {
    match record.member(member).map(|node| &node.value) {
        Some(Value::String(text)) => text.clone().into_owned(),
        _ => String::new(),
    }
}

/// Whom another record is about; none: it has not arrived.
async fn elsewhere(
    connection: &mut PgConnection,
    store_id: i64,
    resource: &str,
    segment: &str,
) -> sqlx::Result<Option<Whom>> {
    let Some(entry) = catalog::entry(resource) else {
        return Ok(None);
    };
    let Some(id) = entry.find(connection, store_id, segment).await? else {
        return Ok(None);
    };
    let found = entry.by_ids(connection, store_id, &[id]).await?;
    Ok(found
        .first()
        .map(|snapshot| phone_in(entry, &snapshot.body)))
}

fn phone_in(entry: &Entry, body: &str) -> Whom {
    match parse(body.as_bytes()) {
        Ok(record) => Whom::of(own_phone(entry, &record)),
        Err(_) => Whom::Erased,
    }
}
