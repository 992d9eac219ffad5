//! Compares what was answered with the model, record by record.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, FixedOffset};
use serde_json::Value;

use super::bodies;
use super::history::{Answer, Op, Shown};
use super::order::{self, Story};
use super::people;
use super::plan::{Form, Target, targets};
use super::rules::{Change, Kind, Members, Outcome, State, Verdict, apply};
use super::timing::{self, Bounds};

/// What is wrong, and with which record.
#[derive(Debug)]
pub struct Wrong {
    pub target: Target,
    pub problem: String,
}

/// A record: who asked for what, in order of numbers, and what is left in the end.
pub struct Case<'a> {
    pub target: Target,
    pub ops: Vec<&'a Op>,
    /// The last version; 0 if there is no record.
    pub newest: usize,
    /// Null if there is no record.
    pub id: Value,
    /// How its changes follow each other; not of customers, whom orders change as well.
    pub story: Option<Story>,
}

/// Checks a whole round, whose last ops are a look at every record; gives the records.
///
/// # Errors
/// The first thing that no order of the writes gives.
pub fn check(history: &[Op], store_id: i64) -> Result<Vec<Case<'_>>, Wrong> {
    let mut cases = Vec::new();
    for target in targets() {
        let mut case = Case::of(target, history);
        case.settle(store_id)
            .map_err(|problem| Wrong { target, problem })?;
        cases.push(case);
    }
    all_at_once(&cases)?;
    parcels(&cases)?;
    people::check(&cases)?;
    Ok(cases)
}

impl<'a> Case<'a> {
    fn of(target: Target, history: &'a [Op]) -> Self {
        let ops: Vec<&Op> = history.iter().filter(|op| op.target == target).collect();
        let last = ops.last().and_then(|op| op.shown());
        Self {
            target,
            newest: last.map_or(0, |shown| shown.version),
            id: last.map_or(Value::Null, |shown| shown.body["id"].clone()),
            ops,
            story: None,
        }
    }

    /// Checks what can be checked without other records.
    fn settle(&mut self, store_id: i64) -> Result<(), String> {
        for op in &self.ops {
            labels(op)?;
        }
        self.identity(store_id)?;
        timing::never_goes_back(&self.ops, &self.bounds())?;
        if self.target.kind != Kind::Customers {
            self.story = Some(order::order(self.target.kind, &self.ops, self.newest)?);
        }
        timing::never_goes_back(&self.ops, &self.bounds())?;
        self.explain()
    }

    /// Which versions each op can have made or met.
    pub fn bounds(&self) -> Vec<Option<Bounds>> {
        match &self.story {
            Some(story) => story.bounds.clone(),
            None => timing::bounds_of(&self.ops, self.newest),
        }
    }

    /// Whether it is a customer, and there is one.
    pub fn is_person(&self) -> bool {
        self.target.kind == Kind::Customers && self.newest > 0
    }

    /// An error about this record.
    pub fn wrong(&self, problem: impl Into<String>) -> Wrong {
        Wrong {
            target: self.target,
            problem: problem.into(),
        }
    }

    /// The customer that an order or a checkout carried in a version.
    pub fn customer(&self, version: usize) -> Option<&Members> {
        let state = self.story.as_ref()?.states[version].as_ref()?;
        state.content.get("customer")?.as_object()
    }

    /// It has one id, one time of creation, and one later time for each version.
    fn identity(&self, store_id: i64) -> Result<(), String> {
        let mut times: BTreeMap<usize, DateTime<FixedOffset>> = BTreeMap::new();
        let mut created: BTreeSet<&str> = BTreeSet::new();
        for op in &self.ops {
            let id = match &op.answer {
                Answer::Shown(shown) => &shown.body["id"],
                Answer::Listed { id, .. } => id,
                _ => continue,
            };
            if *id != self.id {
                return Err(format!("the id is {}, not that of\n{op}", self.id));
            }
            let Some(shown) = op.shown() else { continue };
            if shown.body["store_id"] != store_id || !is_named(self.target, shown) {
                return Err(format!("another record was answered\n{op}"));
            }
            created.extend(shown.text("created_at"));
            let time = shown.text("updated_at").unwrap_or_default();
            let time =
                DateTime::parse_from_rfc3339(time).map_err(|error| format!("{error}: {op}"))?;
            if times
                .insert(shown.version, time)
                .is_some_and(|other| other != time)
            {
                return Err(format!("version {} has two times\n{op}", shown.version));
            }
        }
        let times: Vec<_> = times.values().collect();
        if created.len() > 1 || times.windows(2).any(|two| two[0] >= two[1]) {
            return Err(format!("created at {created:?}, updated at {times:?}"));
        }
        Ok(())
    }

    /// Every answer is what the model says of the version that it tells of, or, without one, of a
    /// version that it can have met. What made a version, and what bulk items met, is known already.
    fn explain(&self) -> Result<(), String> {
        let Some(story) = &self.story else {
            return Ok(());
        };
        for op in &self.ops {
            let is_explained = match &op.answer {
                Answer::Shown(shown) if !op.is_change() => {
                    let state = story.states[shown.version].as_ref();
                    agrees(op, state, shown.source())
                }
                Answer::TurnedAway(code) => op.has_waited(code),
                Answer::Refused(_) => {
                    let window = timing::window(op, &self.ops, &story.bounds, self.newest);
                    let mut states = story.states[window.versions()].iter();
                    states.any(|state| agrees(op, state.as_ref(), None))
                }
                Answer::Shown(_) | Answer::Listed { .. } | Answer::Dropped => true,
            };
            if !is_explained {
                return Err(format!("the model has no such answer\n{op}"));
            }
        }
        Ok(())
    }
}

fn is_named(target: Target, shown: &Shown) -> bool {
    let name = bodies::name(target);
    let named = shown.text("external_id");
    match target.kind {
        Kind::Customers => {
            shown.text("phone") == Some(&bodies::phone(target.at))
                && named.is_none_or(|named| named == name)
        }
        _ => named == Some(&name),
    }
}

/// Status, outcome and `ETag` say the same.
fn labels(op: &Op) -> Result<(), String> {
    let status = match &op.answer {
        Answer::Shown(shown) if shown.etag != format!("\"{}\"", shown.version) => 0,
        Answer::Shown(shown) => shown.status,
        Answer::Listed { status, .. } => *status,
        _ => return Ok(()),
    };
    let is_read = matches!(op.request.change, Change::Read(_));
    let expected = match op.outcome() {
        Some(Outcome::Created) => 201,
        Some(_) => 200,
        None if is_read => 200,
        None => return Err(format!("no outcome\n{op}")),
    };
    if status == expected {
        Ok(())
    } else {
        Err(format!("status or ETag don't agree with the answer\n{op}"))
    }
}

/// Whether the model gives this answer, which is no change, over this state and time. A refusal
/// doesn't depend on the time.
fn agrees(op: &Op, state: Option<&State>, source: Option<&str>) -> bool {
    let before = state.map(|state| State {
        source: source.map(str::to_owned),
        ..state.clone()
    });
    let verdict = apply(op.target.kind.rules(), before.as_ref(), &op.request);
    match (verdict, &op.answer) {
        (Verdict::Refused(said), Answer::Refused(status)) => said == *status,
        (Verdict::Done(outcome, after), Answer::Shown(_)) => {
            op.outcome().is_none_or(|told| told == outcome) && Some(after) == before
        }
        _ => false,
    }
}

/// The case of a record.
pub fn case_of<'c, 'a>(cases: &'c [Case<'a>], target: Target) -> &'c Case<'a> {
    let found = cases.iter().find(|case| case.target == target);
    found.expect("every record has one")
}

/// A change that an atomic request made.
struct Part<'c, 'a> {
    case: &'c Case<'a>,
    bounds: Bounds,
}

/// What is written all or nothing is seen all or not at all: once somebody has seen one of the
/// changes, everybody who asks later sees the others too.
fn all_at_once(cases: &[Case<'_>]) -> Result<(), Wrong> {
    let mut requests: BTreeMap<u64, Vec<Part<'_, '_>>> = BTreeMap::new();
    for case in cases.iter().filter(|case| case.story.is_some()) {
        for (op, bounds) in case.ops.iter().zip(case.bounds()) {
            let atomic = op.place.filter(|place| place.form == Form::Atomic);
            if let (Some(place), Some(bounds), true) = (atomic, bounds, op.is_change()) {
                let parts = requests.entry(place.bulk).or_default();
                parts.push(Part { case, bounds });
            }
        }
    }
    for (bulk, parts) in requests {
        let Some(first_seen) = parts.iter().flat_map(Part::seen_at).min() else {
            continue;
        };
        for part in &parts {
            if let Some(op) = part.missed_after(first_seen) {
                let problem = format!("a part of {bulk} had been seen, but not this one by\n{op}");
                return Err(part.case.wrong(problem));
            }
        }
    }
    Ok(())
}

impl<'a> Part<'_, 'a> {
    /// When those who saw it, or what came after it, were answered.
    fn seen_at(&self) -> Vec<u64> {
        let met = self.case.ops.iter().zip(self.case.bounds());
        let sees = |met: Option<Bounds>| met.is_some_and(|met| met.oldest >= self.bounds.newest);
        met.filter(|(_, met)| sees(*met))
            .map(|(op, _)| op.end)
            .collect()
    }

    /// Somebody who asked after this time and met an older version.
    fn missed_after(&self, time: u64) -> Option<&'a Op> {
        let met = self.case.ops.iter().zip(self.case.bounds());
        let misses = |met: Option<Bounds>| met.is_some_and(|met| met.newest < self.bounds.oldest);
        let mut missed = met.filter(|(op, met)| op.start > time && misses(*met));
        missed.next().map(|(op, _)| *op)
    }
}

/// A shipment tells its order's id as soon as there is one.
fn parcels(cases: &[Case<'_>]) -> Result<(), Wrong> {
    for case in cases
        .iter()
        .filter(|case| case.target.kind == Kind::Shipments)
    {
        for op in &case.ops {
            let Some(shown) = op.shown() else { continue };
            let mut orders = cases.iter().filter(|case| case.target.kind == Kind::Orders);
            let order = orders
                .find(|order| shown.text("order_external_id") == Some(&bodies::name(order.target)));
            let order = order.ok_or_else(|| case.wrong(format!("of no order\n{op}")))?;
            let id = &shown.body["order_id"];
            let is_right = if id.is_null() {
                !order
                    .ops
                    .iter()
                    .any(|seen| tells_of_a_record(seen) && seen.is_before(op))
            } else {
                let begun =
                    |maker: &Op| maker.outcome() == Some(Outcome::Created) && maker.start < op.end;
                *id == order.id && order.ops.iter().any(|op| begun(op))
            };
            if !is_right {
                return Err(case.wrong(format!("the id of the order\n{op}")));
            }
        }
    }
    Ok(())
}

fn tells_of_a_record(op: &Op) -> bool {
    op.shown().is_some() || op.outcome().is_some()
}
