//! Which of the versions that no answer claims can an item of a bulk request have made?

use serde_json::Value;

use super::evidence::Evidence;
use super::history::Op;
use super::rules::Rules;
use super::timing::Bounds;

/// A change without a version, and the free versions that it can have, as places among them.
struct Item<'a> {
    at: usize,
    op: &'a Op,
    first: usize,
    last: usize,
}

/// Narrows down the bounds of the changes of bulk requests.
///
/// # Errors
/// When one of them can have made no version.
pub fn share_out(
    rules: &Rules,
    ops: &[&Op],
    evidence: &Evidence<'_>,
    bounds: &mut [Option<Bounds>],
) -> Result<(), String> {
    let free = evidence.free();
    let is_item = |at: &usize| ops[*at].shown().is_none() && ops[*at].is_change();
    let mut items = Vec::new();
    for at in (0..ops.len()).filter(is_item) {
        let (op, within) = (ops[at], bounds[at].expect("a result of a bulk item"));
        let first = free.partition_point(|version| *version < within.oldest);
        let past = free.partition_point(|version| *version <= within.newest);
        let last = past.checked_sub(1).filter(|last| first <= *last);
        let last = last.ok_or_else(|| format!("no version is left for {within:?}\n{op}"))?;
        items.push(Item {
            at,
            op,
            first,
            last,
        });
    }
    items.sort_by_key(|item| (item.op.end, item.op.place.map(|place| place.index)));
    let edges = edges(&items);
    tighten(&mut items, &edges)?;
    for (slot, version) in free.iter().enumerate() {
        if let Some(mark) = &evidence.marks[*version] {
            pin(rules, &mut items, slot, mark)
                .ok_or_else(|| format!("version {version} shows {mark}, which nothing made"))?;
        }
    }
    tighten(&mut items, &edges)?;
    for item in items {
        bounds[item.at] = Some(Bounds {
            oldest: free[item.first],
            newest: free[item.last],
        });
    }
    Ok(())
}

/// Where only one item can have made what was seen, it has made that.
fn pin(rules: &Rules, items: &mut [Item<'_>], slot: usize, mark: &Value) -> Option<()> {
    let may = |item: &&mut Item<'_>| {
        let body = item.op.request.body();
        body.and_then(|body| rules.mark_in(body)) == Some(mark)
            && (item.first..=item.last).contains(&slot)
    };
    let mut makers = items.iter_mut().filter(may);
    let maker = makers.next()?;
    if makers.next().is_none() {
        (maker.first, maker.last) = (slot, slot);
    }
    Some(())
}

/// Which items surely come before which others, as places among them.
fn edges(items: &[Item<'_>]) -> Vec<(usize, usize)> {
    let all = 0..items.len();
    let pairs = all
        .clone()
        .flat_map(|one| all.clone().map(move |other| (one, other)));
    pairs
        .filter(|(one, other)| precedes(items[*one].op, items[*other].op))
        .collect()
}

/// What comes after another has a later first version, and the other an earlier last one.
fn tighten(items: &mut [Item<'_>], edges: &[(usize, usize)]) -> Result<(), String> {
    let mut is_done = false;
    while !std::mem::replace(&mut is_done, true) {
        // Items are nearly in order of time, so going both ways is soon over.
        for (one, other) in edges {
            let first = items[*one].first + 1;
            is_done &= items[*other].first >= first;
            items[*other].first = items[*other].first.max(first);
        }
        for (one, other) in edges.iter().rev() {
            let end = items[*other].last;
            is_done &= items[*one].last < end;
            items[*one].last = items[*one].last.min(end.saturating_sub(1));
        }
        if let Some(item) = items.iter().find(|item| item.first > item.last) {
            return Err(format!("others leave no version for\n{}", item.op));
        }
    }
    Ok(())
}

/// Whether one change was made before another, whatever their versions are.
fn precedes(one: &Op, other: &Op) -> bool {
    let (a, b) = (one.request.source(), other.request.source());
    one.is_before(other) || one.is_earlier_item(other) || (a.is_some() && b.is_some() && a < b)
}
