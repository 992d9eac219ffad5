//! Customers, whom direct POSTs replace and orders merge into.
//!
//! An order's answer tells no version of its customer, so the changes of a customer have no known
//! order. But each change brings values that no other one has, and a value that is seen was neither
//! written too late nor surely overwritten:
//!
//! ```text
//!   write a ├────┤                              seen here, `a` would be lost:
//!   write b         ├────┤                      `b` came after it and before the look
//!   look                       ├────┤
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::bodies;
use super::check::{Case, Wrong, case_of};
use super::evidence::{alike, shows};
use super::history::{Answer, Op, Shown};
use super::order::Story;
use super::plan::{Naming, Target};
use super::rules::{Change, Fallback, Kind, Members, Outcome, State, Verdict, apply, put};
use super::timing::{self, Bounds};

/// Members that are compared one by one; the phone never changes here.
fn members() -> impl Iterator<Item = (&'static str, Value)> {
    let all = Kind::Customers.rules().members.iter();
    all.filter(|(_, fallback)| !matches!(fallback, Fallback::Required))
        .map(|(name, fallback)| (*name, fallback.value()))
}

/// A change of a customer, by itself or inside an order.
struct Write<'a> {
    op: &'a Op,
    says: Members,
    /// Of a direct POST that told its version.
    version: Option<usize>,
    /// Whether it has surely been made: an order's time may be older than the customer's.
    certainty: Certainty,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Certainty {
    Made,
    Possible,
}

/// What an answer shows of a customer.
struct Look<'a> {
    op: &'a Op,
    shows: Shows<'a>,
    version: Option<usize>,
}

enum Shows<'a> {
    All(&'a Members),
    /// Nothing was found by its external id.
    NoName,
}

impl<'a> Look<'a> {
    fn value(&self, name: &str) -> Option<&'a Value> {
        match self.shows {
            Shows::All(members) => members.get(name),
            Shows::NoName => (name == "external_id").then_some(&Value::Null),
        }
    }
}

/// Checks the customers of a round.
///
/// # Errors
/// The first thing that no order of the writes gives.
pub fn check(cases: &[Case<'_>]) -> Result<(), Wrong> {
    let mut writes: BTreeMap<usize, Vec<Write<'_>>> = BTreeMap::new();
    let mut looks: BTreeMap<usize, Vec<Look<'_>>> = BTreeMap::new();
    for case in cases
        .iter()
        .filter(|case| case.target.kind == Kind::Customers)
    {
        direct(case).map_err(|problem| case.wrong(problem))?;
        let at = case.target.at;
        writes.entry(at).or_default().extend(direct_writes(case));
        looks.entry(at).or_default().extend(direct_looks(case));
    }
    let carries = |case: &&Case<'_>| matches!(case.target.kind, Kind::Orders | Kind::Checkouts);
    for case in cases.iter().filter(carries) {
        for (at, write) in carried(case, cases) {
            writes.entry(at).or_default().push(write);
        }
        for (at, look) in carried_looks(case, cases)? {
            looks.entry(at).or_default().push(look);
        }
    }
    for case in cases
        .iter()
        .filter(|case| case.target.kind == Kind::Customers)
    {
        let (writes, looks) = (&writes[&case.target.at], &looks[&case.target.at]);
        count(case, writes)
            .and_then(|()| members().try_for_each(|member| nothing_is_lost(&member, writes, looks)))
            .map_err(|problem| case.wrong(problem))?;
    }
    Ok(())
}

fn customer(at: usize) -> Target {
    let kind = Kind::Customers;
    Target { kind, at }
}

/// Checks what was asked of the customer itself. What a version holds is not known from elsewhere,
/// so answers are compared with what they show.
fn direct(case: &Case<'_>) -> Result<(), String> {
    alike(&case.ops, case.newest)?;
    let mut versions = BTreeSet::new();
    let mut created = 0;
    let bounds = case.bounds();
    for op in &case.ops {
        created += usize::from(op.outcome() == Some(Outcome::Created));
        let is_new = |shown: &Shown| !op.is_change() || versions.insert(shown.version);
        if created > 1 || !op.shown().is_none_or(is_new) {
            return Err(format!(
                "a version was given twice, the second time to\n{op}"
            ));
        }
        if !is_explained(case, &bounds, op) {
            return Err(format!("the model has no such answer\n{op}"));
        }
    }
    Ok(())
}

fn is_explained(case: &Case<'_>, bounds: &[Option<Bounds>], op: &Op) -> bool {
    let met = || timing::window(op, &case.ops, bounds, case.newest);
    match &op.answer {
        Answer::Shown(shown) if op.is_change() => {
            let is_first = op.outcome() == Some(Outcome::Created);
            let own = op.request.source();
            is_first == (shown.version == 1)
                && shows(shown, &content_after(op, &shown.body))
                && (own.is_none() || shown.source() == own)
                && has_source(case, op, shown.source())
        }
        Answer::Shown(shown) => {
            let state = state_of(shown);
            let is_alike = match apply(case.target.kind.rules(), Some(&state), &op.request) {
                Verdict::Done(outcome, after) => {
                    after == state && op.outcome().is_none_or(|told| told == outcome)
                }
                Verdict::Refused(_) => false,
            };
            is_alike && has_source(case, op, shown.source())
        }
        Answer::Listed { outcome, .. } => match outcome {
            Outcome::Created | Outcome::Updated => true,
            Outcome::Unchanged => met().newest > 0,
            Outcome::Stale => {
                let rivals = || case.ops.iter().filter(|rival| rival.start < op.end);
                rivals().any(|rival| rival.request.source() > op.request.source())
            }
        },
        // By name it is there as soon as it has one, which `nothing_is_lost` looks at.
        Answer::Refused(404) => matches!(op.request.change, Change::Read(_)),
        Answer::Refused(412) => met().versions().any(|version| {
            let version = Some(version).filter(|version| *version > 0);
            (op.request.if_match.is_some() && op.request.if_match != version)
                || (op.request.if_none_match && version.is_some())
        }),
        Answer::TurnedAway(code) => op.has_waited(code),
        Answer::Refused(status) => {
            apply(case.target.kind.rules(), None, &op.request) == Verdict::Refused(*status)
        }
        Answer::Dropped => true,
    }
}

/// Whether somebody has sent this time.
fn has_source(case: &Case<'_>, op: &Op, source: Option<&str>) -> bool {
    let mut senders = case.ops.iter().filter(|sender| {
        let is_taken = sender
            .outcome()
            .is_some_and(|outcome| outcome != Outcome::Stale);
        is_taken && sender.start < op.end
    });
    source.is_none() || senders.any(|sender| sender.request.source() == source)
}

fn state_of(shown: &Shown) -> State {
    State {
        version: shown.version,
        source: shown.source().map(str::to_owned),
        content: put(Kind::Customers.rules(), None, &shown.body),
    }
}

/// The content after a direct POST, but for an external id that it leaves as it was.
fn content_after(op: &Op, stored: &Members) -> Members {
    let body = op.request.body().cloned().unwrap_or_default();
    put(Kind::Customers.rules(), Some(stored), &body)
}

fn direct_writes<'a>(case: &Case<'a>) -> Vec<Write<'a>> {
    let changes = case.ops.iter().filter(|op| op.is_change());
    let write = |op: &&'a Op| {
        let mut says = content_after(op, &Members::new());
        if says["external_id"].is_null() {
            says.remove("external_id");
        }
        Write {
            op,
            says,
            version: op.shown().map(|shown| shown.version),
            certainty: Certainty::Made,
        }
    };
    changes.map(write).collect()
}

/// A customer that is not found by its name has none.
fn direct_looks<'a>(case: &Case<'a>) -> Vec<Look<'a>> {
    let by_name = |op: &&&Op| matches!(op.request.change, Change::Read(Naming::ByBoth));
    let missed = case
        .ops
        .iter()
        .filter(|op| matches!(op.answer, Answer::Refused(404)));
    let missed = missed.filter(by_name).map(|op| Look {
        op,
        shows: Shows::NoName,
        version: None,
    });
    let looks = case.ops.iter().filter_map(|op| {
        let shown = op.shown()?;
        Some(Look {
            op,
            shows: Shows::All(&shown.body),
            version: Some(shown.version),
        })
    });
    looks.chain(missed).collect()
}

/// What the changes of an order or a checkout say of customers.
fn carried<'a>(case: &Case<'a>, cases: &[Case<'a>]) -> Vec<(usize, Write<'a>)> {
    let mut writes = Vec::new();
    for (version, maker) in case.story.iter().flat_map(Story::changes) {
        let Some(sent) = case.customer(version) else {
            continue;
        };
        // What was carried before is not looked at again.
        if case.customer(version - 1) == Some(sent) {
            continue;
        }
        let (op, at) = (case.ops[maker], who(sent));
        let home = case_of(cases, customer(at));
        writes.push((at, merge(op, sent, home)));
    }
    writes
}

fn who(customer: &Members) -> usize {
    let phone = customer.get("phone").and_then(Value::as_str);
    phone.and_then(bodies::customer_of).expect("one of ours")
}

fn merge<'a>(op: &'a Op, sent: &Members, home: &Case<'_>) -> Write<'a> {
    let own = op.request.source();
    let is_later = |rival: &&Op| rival.start < op.end && rival.request.source() > own;
    let certainty = if own.is_some() && home.ops.iter().any(is_later) {
        Certainty::Possible
    } else {
        Certainty::Made
    };
    Write {
        op,
        says: sent.clone(),
        version: None,
        certainty,
    }
}

/// The customers that the answers of an order or a checkout show.
fn carried_looks<'a>(case: &Case<'a>, cases: &[Case<'a>]) -> Result<Vec<(usize, Look<'a>)>, Wrong> {
    let mut looks = Vec::new();
    for op in &case.ops {
        let Some(shown) = op.shown() else {
            continue;
        };
        let view = shown.body.get("customer").and_then(Value::as_object);
        let (Some(view), Some(sent)) = (view, case.customer(shown.version)) else {
            return Err(case.wrong(format!("no customer\n{op}")));
        };
        let at = who(sent);
        let id = &case_of(cases, customer(at)).id;
        if view["phone"] != sent["phone"] || view["id"] != *id {
            return Err(case.wrong(format!("another customer than {sent:?} with id {id}\n{op}")));
        }
        let shows = Shows::All(view);
        looks.push((
            at,
            Look {
                op,
                shows,
                version: None,
            },
        ));
    }
    Ok(looks)
}

/// Each direct change made a version of its own; the others were made by orders, of which one
/// transaction may fold some into one.
fn count(case: &Case<'_>, writes: &[Write<'_>]) -> Result<(), String> {
    let direct = case.ops.iter().filter(|op| op.is_change()).count();
    if (direct..=writes.len()).contains(&case.newest) {
        return Ok(());
    }
    let (newest, all) = (case.newest, writes.len());
    Err(format!(
        "{newest} versions out of {direct} direct changes, {all} in all"
    ))
}

/// The writes of one member.
struct Member<'w, 'a> {
    by_value: BTreeMap<String, Vec<&'w Write<'a>>>,
    /// Of sure writes in order of their ends: that end, and the latest start until then.
    sure: Vec<(u64, u64)>,
    sure_starts: BTreeMap<u64, u64>,
    initial: String,
}

impl<'w, 'a> Member<'w, 'a> {
    fn of(name: &str, initial: &Value, writes: &'w [Write<'a>]) -> Self {
        let mut member = Self {
            by_value: BTreeMap::new(),
            sure: Vec::new(),
            sure_starts: BTreeMap::new(),
            initial: initial.to_string(),
        };
        for write in writes {
            let Some(value) = write.says.get(name) else {
                continue;
            };
            member
                .by_value
                .entry(value.to_string())
                .or_default()
                .push(write);
            if write.certainty == Certainty::Made {
                member.sure.push((write.op.end, write.op.start));
                member.sure_starts.insert(write.op.number, write.op.start);
            }
        }
        member.sure.sort_unstable();
        let mut latest = 0;
        for (_, start) in &mut member.sure {
            latest = latest.max(*start);
            *start = latest;
        }
        member
    }

    /// A write that ended before this time is surely overwritten for this look.
    fn overwritten_before(&self, look: &Look<'_>) -> Option<u64> {
        let ended = self.sure.partition_point(|(end, _)| *end < look.op.start);
        let by_others = ended.checked_sub(1).map(|at| self.sure[at].1);
        by_others.max(self.sure_starts.get(&look.op.number).copied())
    }

    fn may_show(&self, look: &Look<'_>, value: &Value, direct: Option<usize>) -> bool {
        let overwritten = self.overwritten_before(look);
        let value = value.to_string();
        let is_initial = value == self.initial && overwritten.is_none() && direct.is_none();
        let mut writes = self.by_value.get(&value).into_iter().flatten();
        is_initial
            || writes.any(|write| {
                let is_direct = write.version.is_some() && look.version.is_some();
                write.op.start < look.op.end
                    && overwritten.is_none_or(|time| time <= write.op.end)
                    && (!is_direct || write.version == direct)
            })
    }
}

/// Every value that was shown was written, and not surely overwritten.
fn nothing_is_lost(
    (name, initial): &(&'static str, Value),
    writes: &[Write<'_>],
    looks: &[Look<'_>],
) -> Result<(), String> {
    let member = Member::of(name, initial, writes);
    let says = |write: &&Write<'_>| write.says.contains_key(*name);
    let direct = writes.iter().filter(says);
    let versions: BTreeSet<usize> = direct.filter_map(|write| write.version).collect();
    for look in looks {
        let Some(value) = look.value(name) else {
            continue;
        };
        // A direct POST replaces everything, so only the newest one before this version counts.
        let until = look.version.unwrap_or(0);
        let direct = versions.range(..=until).next_back().copied();
        if !member.may_show(look, value, direct) {
            let op = look.op;
            return Err(format!(
                "{name} is {value}, which was overwritten or never written\n{op}"
            ));
        }
    }
    Ok(())
}
