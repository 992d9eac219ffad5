//! From events to runs: which automations ask for a change, and may they run?

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::TimeDelta;
use sqlx::PgConnection;
use uuid::Uuid;

use super::input::Reentry;
use super::rules::{self, Rule, Trigger};
use super::runs::{self, NewRun};
use super::sources;
use crate::engine::PhoneAt;
use crate::engine::consumers::Seen;
use crate::resources::catalog::{self, Entry, Snapshot};
use crate::state::State;
use crate::values::{Node, parse};

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
    connection: &mut PgConnection,
    store_id: i64,
    seen: &[Seen],
) -> sqlx::Result<Vec<Uuid>> {
    let rules = rules::of_changes(&mut *connection, store_id).await?;
    let snapshots = snapshots(connection, store_id, seen, &rules).await?;
    let mut new = Vec::new();
    for event in seen {
        let Some(snapshot) = snapshots.get(&event.record_id) else {
            continue;
        };
        if snapshot.version != event.version {
            continue;
        }
        // What we have answered ourselves is JSON.
        let Ok(record) = parse(snapshot.body.as_bytes()) else {
            continue;
        };
        for rule in rules.iter().filter(|rule| asks_for(rule, event, &record)) {
            new.push((rule, run(state, store_id, rule, event, snapshot, &record)));
        }
    }
    let new = admit(state, connection, store_id, new).await?;
    runs::insert(connection, store_id, &new, state.clock.now()).await
}

/// The records that events are about and automations ask for, as they are now.
async fn snapshots(
    connection: &mut PgConnection,
    store_id: i64,
    seen: &[Seen],
    rules: &[Rule],
) -> sqlx::Result<HashMap<Uuid, Snapshot>> {
    let mut wanted: BTreeMap<&'static str, BTreeSet<Uuid>> = BTreeMap::new();
    for event in seen {
        let asked = rules.iter().filter_map(|rule| {
            let resource = rule.trigger.resource()?;
            (resource == event.resource && rule.from_position < event.position).then_some(resource)
        });
        if let Some(resource) = asked.into_iter().next() {
            wanted.entry(resource).or_default().insert(event.record_id);
        }
    }
    let mut snapshots = HashMap::new();
    for (resource, ids) in wanted {
        let Some(entry) = catalog::entry(resource) else {
            continue;
        };
        let ids: Vec<Uuid> = ids.into_iter().collect();
        for snapshot in entry.by_ids(connection, store_id, &ids).await? {
            snapshots.insert(snapshot.id, snapshot);
        }
    }
    Ok(snapshots)
}

/// Whether an automation asks for a change that left the record like this.
fn asks_for(rule: &Rule, event: &Seen, record: &Node<'_>) -> bool {
    let Trigger::Change {
        resource,
        condition,
    } = &rule.trigger
    else {
        return false;
    };
    *resource == event.resource && rule.from_position < event.position && condition.matches(record)
}

/// The run that a change asks for.
fn run(
    state: &State,
    store_id: i64,
    rule: &Rule,
    event: &Seen,
    snapshot: &Snapshot,
    record: &Node<'_>,
) -> NewRun {
    let occasion = event.id.as_bytes().to_vec();
    let entry = catalog::entry(&event.resource);
    let phone = entry.and_then(|entry| own_phone(entry, record));
    NewRun {
        once: (rule.reentry == Reentry::OncePerRecord).then(|| event.record_id.as_bytes().to_vec()),
        record: entry.map(|entry| (entry.path, event.record_id)),
        external_id: snapshot.event_external_id.clone(),
        contact: phone.map(|phone| runs::contact(store_id, phone)),
        ..NewRun::of(state, rule, occasion, event.created_at)
    }
}

/// The number of the person whom a record is about, if it stands in the record itself.
pub fn own_phone<'n>(entry: &Entry, record: &'n Node<'_>) -> Option<&'n str> {
    match entry.phone {
        PhoneAt::Pointer(pointer) => sources::text_at(record, pointer),
        PhoneAt::Other { .. } => None,
    }
}

/// Notes of each run whether it may be, by the state of its automation and by what ran before it.
async fn admit(
    state: &State,
    connection: &mut PgConnection,
    store_id: i64,
    new: Vec<(&Rule, NewRun)>,
) -> sqlx::Result<Vec<NewRun>> {
    let mut taken = taken(state, connection, store_id, &new).await?;
    let mut admitted = Vec::with_capacity(new.len());
    for (rule, mut run) in new {
        let what = subject(rule, &run);
        if rule.paused {
            run.skipped = Some("automation_paused");
        } else if what.is_some_and(|what| !taken.insert((rule.id, what))) {
            run.skipped = Some("reentry");
        }
        if run.skipped.is_some() {
            run.once = None;
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
    connection: &mut PgConnection,
    store_id: i64,
    new: &[(&Rule, NewRun)],
) -> sqlx::Result<HashSet<(Uuid, Vec<u8>)>> {
    let mut by_rule: BTreeMap<Uuid, (&Rule, Vec<Vec<u8>>)> = BTreeMap::new();
    for (rule, run) in new {
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
    connection: &mut PgConnection,
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
