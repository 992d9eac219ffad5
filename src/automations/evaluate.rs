//! From events to runs: which automations ask for a change, and may they run?

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::TimeDelta;
use uuid::Uuid;

use super::input::Reentry;
use super::rules::{self, Rule};
use super::runs::{self, NewRun};
use super::sources;
use crate::database::Connection;
use crate::engine::PersonAt;
use crate::engine::consumers::Seen;
use crate::resources::catalog::{self, Entry, Snapshot};
use crate::state::State;
use crate::values::{Node, parse};

/// Records looked at together: each may have more than 1 MiB.
const RECORDS: usize = 20;

/// Lets events of a store set automations off, in the caller's transaction, which lets nobody else
/// evaluate the store's events meanwhile; gives the runs that were scheduled.
///
/// The condition is judged on the record as it is now. An event whose record has changed again since
/// is left to the event of that later change.
///
/// # Errors
/// When the database fails.
pub async fn evaluate(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    seen: &[Seen],
) -> sqlx::Result<Vec<Uuid>> {
    let rules = rules::of_changes(&mut *connection, store_id).await?;
    let mut new = Vec::new();
    for entry in catalog::ALL.iter() {
        let asked: Vec<&Seen> = seen
            .iter()
            .filter(|event| event.resource == entry.path)
            .filter(|event| rules.iter().any(|rule| follows(rule, event)))
            .collect();
        for some in asked.chunks(RECORDS) {
            let judged = judge(state, connection, store_id, (entry, some), &rules).await?;
            new.extend(judged);
        }
    }
    new.sort_by_key(|(position, _, _)| *position);
    let new = admit(state, connection, store_id, new).await?;
    runs::insert(connection, store_id, &new, state.clock.now()).await
}

/// The runs that some events of one resource ask for, each with its event's position.
async fn judge<'r>(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    (entry, events): (&Entry, &[&Seen]),
    rules: &'r [Rule],
) -> sqlx::Result<Vec<(i64, &'r Rule, NewRun)>> {
    let ids: BTreeSet<Uuid> = events.iter().map(|event| event.record_id).collect();
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let snapshots = entry.by_ids(connection, store_id, &ids).await?;
    let mut new = Vec::new();
    for event in events {
        let is_of = |snapshot: &&Snapshot| {
            snapshot.id == event.record_id && snapshot.version == event.version
        };
        let Some(snapshot) = snapshots.iter().find(is_of) else {
            continue;
        };
        // What we have answered ourselves is JSON.
        let Ok(record) = parse(snapshot.body.as_bytes()) else {
            continue;
        };
        for rule in rules.iter().filter(|rule| asks_for(rule, event, &record)) {
            let run = run(state, store_id, rule, event, (entry, snapshot, &record));
            new.push((event.position, rule, run));
        }
    }
    Ok(new)
}

/// Whether an automation looks at a change at all.
fn follows(rule: &Rule, event: &Seen) -> bool {
    rule.trigger.resource() == Some(event.resource.as_str()) && rule.from.is_before(event)
}

/// Whether an automation asks for a change that left the record like this.
fn asks_for(rule: &Rule, event: &Seen, record: &Node<'_>) -> bool {
    follows(rule, event) && rule.trigger.is_met(event.resource.as_str(), record)
}

/// The run that a change asks for.
fn run(
    state: &State,
    store_id: i64,
    rule: &Rule,
    event: &Seen,
    (entry, snapshot, record): (&Entry, &Snapshot, &Node<'_>),
) -> NewRun {
    let occasion = event.id.as_bytes().to_vec();
    let phone = match entry.person {
        PersonAt::Here { phone, .. } => sources::text_at(record, phone),
        PersonAt::Elsewhere { .. } => None,
    };
    NewRun {
        once: (rule.reentry == Reentry::OncePerRecord).then(|| event.record_id.as_bytes().to_vec()),
        record: Some((entry.path, event.record_id)),
        external_id: snapshot.event_external_id.clone(),
        contact: phone.map(|phone| runs::contact(store_id, phone)),
        ..NewRun::of(state, rule, occasion, event.created_at)
    }
}

/// Notes of each run whether it may be, by the state of its automation and by what ran before it.
async fn admit(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    new: Vec<(i64, &Rule, NewRun)>,
) -> sqlx::Result<Vec<NewRun>> {
    let mut taken = taken(state, connection, store_id, &new).await?;
    let mut admitted = Vec::with_capacity(new.len());
    for (_, rule, mut run) in new {
        let what = subject(rule, &run);
        if rule.paused {
            run.skipped = Some("automation_paused");
        } else if what.is_some_and(|what| !taken.insert((rule.id, what))) {
            run.skipped = Some("reentry");
        }
        if run.skipped.is_some() {
            (run.once, run.contact) = (None, None);
        }
        admitted.push(run);
    }
    Ok(admitted)
}

/// What a run is about, as far as its automation cares whether there was one before.
fn subject(rule: &Rule, run: &NewRun) -> Option<Vec<u8>> {
    match rule.reentry {
        Reentry::OncePerRecord => run.once.clone(),
        Reentry::Cooldown(_) => run.contact.clone(),
        Reentry::EveryChange => None,
    }
}

/// What earlier runs were about.
async fn taken(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    new: &[(i64, &Rule, NewRun)],
) -> sqlx::Result<HashSet<(Uuid, Vec<u8>)>> {
    let mut by_rule: BTreeMap<Uuid, (&Rule, Vec<Vec<u8>>)> = BTreeMap::new();
    for (_, rule, run) in new {
        let (_, subjects) = by_rule.entry(rule.id).or_insert((rule, Vec::new()));
        subjects.extend(subject(rule, run));
    }
    let mut taken = HashSet::new();
    for (id, (rule, subjects)) in by_rule {
        if subjects.is_empty() {
            continue;
        }
        let subjects: Vec<&[u8]> = subjects.iter().map(Vec::as_slice).collect();
        let known = known(state, connection, store_id, rule, &subjects).await?;
        taken.extend(known.into_iter().map(|subject| (id, subject)));
    }
    Ok(taken)
}

/// Which of these an earlier run of the automation was about.
pub async fn known(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    rule: &Rule,
    subjects: &[&[u8]],
) -> sqlx::Result<Vec<Vec<u8>>> {
    match rule.reentry {
        Reentry::OncePerRecord => {
            runs::known_once(&mut *connection, store_id, rule.id, subjects).await
        }
        Reentry::Cooldown(seconds) => {
            let after = state.clock.now() - TimeDelta::seconds(seconds);
            runs::known_contacts(&mut *connection, store_id, rule.id, subjects, after).await
        }
        Reentry::EveryChange => Ok(Vec::new()),
    }
}
