//! What the answers with a record tell of its versions by themselves.

use std::collections::BTreeSet;

use serde_json::Value;

use super::history::{Op, Shown};
use super::rules::{Change, Members, Outcome, Rules};

/// What is known of each version; 0 is that there is no record.
pub struct Evidence<'a> {
    /// The op whose answer claims to have made it, as its place among the ops.
    pub claimed: Vec<Option<usize>>,
    /// What anybody was shown of it.
    pub seen: Vec<Option<&'a Shown>>,
    /// Of a version that nobody claims: the number in the body that made it, if that was seen.
    pub marks: Vec<Option<Value>>,
    /// The times that were shown with it.
    pub sources: Vec<BTreeSet<Option<String>>>,
    /// Times that came with equal content: the version stays, the record's time may have advanced.
    /// In bulk nobody sends a later time with the same content.
    pub touches: Vec<BTreeSet<Option<String>>>,
}

impl<'a> Evidence<'a> {
    /// What the answers of one record tell; `newest` is its last version.
    ///
    /// # Errors
    /// Where they contradict each other.
    pub fn of(rules: &Rules, ops: &[&'a Op], newest: usize) -> Result<Self, String> {
        let claimed = claims(ops, newest)?;
        let seen = alike(ops, newest)?;
        Ok(Self {
            marks: marks(rules, ops, &claimed, &seen)?,
            sources: sources(ops, newest),
            touches: touches(ops, newest),
            claimed,
            seen,
        })
    }

    /// The versions that nobody claims.
    pub fn free(&self) -> Vec<usize> {
        let versions = self.claimed.iter().enumerate().skip(1);
        let free = versions.filter(|(_, claim)| claim.is_none());
        free.map(|(version, _)| version).collect()
    }
}

/// Which version is claimed by which answer.
fn claims(ops: &[&Op], newest: usize) -> Result<Vec<Option<usize>>, String> {
    let mut claimed: Vec<Option<usize>> = vec![None; newest + 1];
    let mut unclaimed = 0;
    for (at, op) in ops.iter().enumerate().filter(|(_, op)| op.is_change()) {
        let Some(shown) = op.shown() else {
            unclaimed += 1;
            continue;
        };
        let claim = claimed.get_mut(shown.version);
        let claim =
            claim.ok_or_else(|| format!("the last version is {newest}, not that of\n{op}"))?;
        if let Some(other) = claim.replace(at) {
            let other = ops[other];
            return Err(format!("a version was given twice: to\n{other}\nand\n{op}"));
        }
    }
    let free = claimed
        .iter()
        .skip(1)
        .filter(|claim| claim.is_none())
        .count();
    if free == unclaimed {
        return Ok(claimed);
    }
    Err(format!(
        "of {newest} versions no answer tells of {free}, {unclaimed} bulk items changed something"
    ))
}

/// One answer for each version that was shown.
///
/// # Errors
/// When answers of one version are not alike.
pub fn alike<'a>(ops: &[&'a Op], newest: usize) -> Result<Vec<Option<&'a Shown>>, String> {
    let mut seen: Vec<Option<&Shown>> = vec![None; newest + 1];
    for (op, shown) in ops.iter().filter_map(|op| Some((op, op.shown()?))) {
        let place = seen.get_mut(shown.version);
        let place =
            place.ok_or_else(|| format!("the last version is {newest}, not that of\n{op}"))?;
        let first = place.get_or_insert(shown);
        if own_members(first) != own_members(shown) {
            return Err(format!("the version was shown in another way before\n{op}"));
        }
    }
    Ok(seen)
}

/// What belongs to a version alone: not the caller's time, which can advance within it, and nothing
/// of other records.
fn own_members(shown: &Shown) -> Members {
    let mut members = shown.body.clone();
    for other in ["source_updated_at", "customer", "order_id"] {
        members.remove(other);
    }
    members
}

/// The numbers in the bodies that made free versions, as far as they were seen. A body keeps its
/// number through PATCHes, so what is seen tells of the last version that no PATCH made.
fn marks(
    rules: &Rules,
    ops: &[&Op],
    claimed: &[Option<usize>],
    seen: &[Option<&Shown>],
) -> Result<Vec<Option<Value>>, String> {
    let mut marks: Vec<Option<Value>> = vec![None; claimed.len()];
    let is_patch = |at: &usize| matches!(ops[*at].request.change, Change::Patch(_));
    for shown in seen.iter().flatten() {
        let mut version = shown.version;
        while version > 0 && claimed[version].as_ref().is_some_and(is_patch) {
            version -= 1;
        }
        if version == 0 || claimed[version].is_some() {
            continue;
        }
        let mark = rules.mark_in(&shown.body).cloned();
        let known = &mut marks[version];
        if known.is_some() && *known != mark {
            return Err(format!(
                "version {version} was made by {known:?} and by {mark:?}"
            ));
        }
        *known = mark;
    }
    Ok(marks)
}

fn sources(ops: &[&Op], newest: usize) -> Vec<BTreeSet<Option<String>>> {
    let mut sources = vec![BTreeSet::new(); newest + 1];
    for shown in ops.iter().filter_map(|op| op.shown()) {
        sources[shown.version].insert(shown.source().map(str::to_owned));
    }
    sources
}

fn touches(ops: &[&Op], newest: usize) -> Vec<BTreeSet<Option<String>>> {
    let mut touches = vec![BTreeSet::new(); newest + 1];
    for op in ops
        .iter()
        .filter(|op| op.outcome() == Some(Outcome::Unchanged))
    {
        if let (Some(shown), Some(source)) = (op.shown(), op.request.source()) {
            touches[shown.version].insert(Some(source.to_owned()));
        }
    }
    touches
}

/// Whether an answer shows this content. Whose order it is, is looked at elsewhere.
pub fn shows(shown: &Shown, content: &Members) -> bool {
    let mut members = content.iter().filter(|(name, _)| *name != "customer");
    members.all(|(name, value)| shown.body.get(name) == Some(value))
}
