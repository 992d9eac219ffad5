//! What clocks tell: who was answered before whom was sent.

use super::history::Op;

/// Versions that an op can have made or met.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub oldest: usize,
    pub newest: usize,
}

impl Bounds {
    pub fn contains(self, version: usize) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    pub fn versions(self) -> std::ops::RangeInclusive<usize> {
        self.oldest..=self.newest
    }

    /// After an op that made or met these.
    fn after(&mut self, other: Self) {
        self.oldest = self.oldest.max(other.oldest);
    }

    /// Before one that made or met these.
    fn before(&mut self, other: Self, by: &Op) {
        let newest = other.newest - usize::from(by.is_change());
        self.newest = self.newest.min(newest);
    }
}

/// Which versions each op of a record can have made or met, as far as the answers with a version
/// tell; none for ops that met nothing.
pub fn bounds_of(ops: &[&Op], newest: usize) -> Vec<Option<Bounds>> {
    let known: Vec<Option<Bounds>> = ops
        .iter()
        .map(|op| {
            let version = op.shown()?.version;
            Some(Bounds {
                oldest: version,
                newest: version,
            })
        })
        .collect();
    let guess = |op: &&Op| {
        op.outcome()?;
        let mut bounds = window(op, ops, &known, newest);
        if op.is_change() {
            by_source(op, ops, &mut bounds);
            bounds.oldest += 1;
        } else {
            bounds.oldest = bounds.oldest.max(1);
        }
        Some(bounds)
    };
    let both = ops.iter().zip(&known);
    both.map(|(op, known)| known.or_else(|| guess(op)))
        .collect()
}

/// A change that says when the caller's system made it came after everything that shows an earlier
/// time, and before everything that shows a later one.
fn by_source(op: &Op, ops: &[&Op], bounds: &mut Bounds) {
    let Some(source) = op.request.source() else {
        return;
    };
    for (other, shown) in ops.iter().filter_map(|op| Some((op, op.shown()?))) {
        let version = shown.version;
        let (oldest, newest) = (version, version);
        let other_bounds = Bounds { oldest, newest };
        if shown.source() < Some(source) {
            bounds.after(other_bounds);
        }
        if shown.source() > Some(source) {
            bounds.before(other_bounds, other);
        }
    }
}

/// The versions that an op can have met: not older than what had been answered before it was sent,
/// not newer than what was met by those sent after its answer.
pub fn window(op: &Op, ops: &[&Op], bounds: &[Option<Bounds>], newest: usize) -> Bounds {
    let mut window = Bounds { oldest: 0, newest };
    for (other, bounds) in ops.iter().zip(bounds) {
        let Some(bounds) = *bounds else { continue };
        if other.is_before(op) || other.is_earlier_item(op) {
            window.after(bounds);
        }
        if op.is_before(other) || op.is_earlier_item(other) {
            window.before(bounds, other);
        }
    }
    window
}

/// Fails where a client is told of an older state than somebody had been told of before it asked.
///
/// # Errors
/// Which two ops.
pub fn never_goes_back(ops: &[&Op], bounds: &[Option<Bounds>]) -> Result<(), String> {
    let known = || {
        ops.iter()
            .zip(bounds)
            .filter_map(|(op, b)| Some((op, (*b)?)))
    };
    for (earlier, before) in known() {
        for (later, after) in known().filter(|(later, _)| earlier.is_before(later)) {
            let newest = after.newest - usize::from(later.is_change());
            if newest < before.oldest || has_forgotten(earlier, later) {
                return Err(format!(
                    "an older state was met than had been answered before\n{later}\ncame after\n{earlier}"
                ));
            }
        }
    }
    Ok(())
}

/// Whether `source_updated_at` went back.
fn has_forgotten(earlier: &Op, later: &Op) -> bool {
    match (earlier.shown(), later.shown()) {
        (Some(before), Some(after)) => after.source() < before.source(),
        _ => false,
    }
}
