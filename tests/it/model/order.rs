//! In which order were the changes of one record made?
//!
//! Answers with a record tell their version. Results of bulk items don't: the versions that no
//! answer claims are shared out among them. There are just as many of the one as of the other, and
//! much narrows down which is which:
//!
//! ```text
//!  what was answered before another was sent     came before it
//!  items of one request                          come in their order
//!  a smaller `source_updated_at`                 came before a larger one, or it would be stale
//!  a version that somebody was shown             holds the body with the number seen in it
//! ```
//!
//! So each item has a first and a last version (`bounds`). Then the versions are gone through from
//! 1 with the model: what is known has to be what the model says, and a version that is free takes
//! the item that can wait least of those that the model takes there. Where that leads nowhere, the
//! choice is taken back. The plan lets few bulk requests meet over one record, so there is not much
//! to choose.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::evidence::{Evidence, shows};
use super::history::{Answer, Op};
use super::rules::{Kind, Rules, State, Verdict, apply};
use super::shares::share_out;
use super::timing::{Bounds, bounds_of};

/// Choices after which it is given up; nothing that works comes near it.
const MOST_STEPS: usize = 200_000;

/// The story of one record.
pub struct Story {
    /// The record by version, as each version was made; 0: there is none.
    pub states: Vec<Option<State>>,
    /// The op that made each version, as its place among the ops; that of 0 means nothing.
    pub makers: Vec<usize>,
    /// Which versions each op can have made or met; none where nothing is known.
    pub bounds: Vec<Option<Bounds>>,
}

impl Story {
    /// Versions and what made them.
    pub fn changes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.makers.iter().copied().enumerate().skip(1)
    }
}

/// Orders the changes of one record; `newest` is its last version, 0 if there is none.
///
/// # Errors
/// Why no order of them gives these answers.
pub fn order(kind: Kind, ops: &[&Op], newest: usize) -> Result<Story, String> {
    let evidence = Evidence::of(kind.rules(), ops, newest)?;
    let mut bounds = bounds_of(ops, newest);
    share_out(kind.rules(), ops, &evidence, &mut bounds)?;
    let mut search = Search {
        rules: kind.rules(),
        ops,
        evidence,
        chains: chains(ops),
        story: Story {
            states: vec![None],
            makers: vec![0],
            bounds,
        },
        hopeless: HashSet::new(),
        steps: 0,
        deepest: (0, String::new()),
    };
    if search.go_on() {
        return Ok(search.story);
    }
    let (_, problem) = search.deepest;
    Err(if search.steps > MOST_STEPS {
        format!("no order was found; furthest: {problem}")
    } else {
        problem
    })
}

/// The items of each bulk request that were taken.
fn chains(ops: &[&Op]) -> Vec<Chain> {
    let mut chains: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, op) in ops.iter().enumerate() {
        if let (Some(place), Answer::Listed { .. }) = (op.place, &op.answer) {
            chains.entry(place.bulk).or_default().push(at);
        }
    }
    let by_index = |at: &usize| ops[*at].place.map(|place| place.index);
    chains
        .into_values()
        .map(|mut ops| {
            ops.sort_by_key(by_index);
            Chain { ops, next: 0 }
        })
        .collect()
}

/// The items of one bulk request for one record.
struct Chain {
    /// Places among the ops, in order of the request.
    ops: Vec<usize>,
    /// How many have their place in the story.
    next: usize,
}

impl Chain {
    fn head(&self) -> Option<usize> {
        self.ops.get(self.next).copied()
    }
}

struct Search<'a> {
    rules: &'static Rules,
    ops: &'a [&'a Op],
    evidence: Evidence<'a>,
    chains: Vec<Chain>,
    story: Story,
    /// How far the chains were, and what the record held, where it did not go on.
    hopeless: HashSet<(Vec<usize>, String)>,
    steps: usize,
    /// How far it got, and what was wrong there.
    deepest: (usize, String),
}

impl Search<'_> {
    /// Goes on from the newest version of the story to the last one.
    fn go_on(&mut self) -> bool {
        self.steps += 1;
        let key = self.standing();
        if self.steps > MOST_STEPS || self.hopeless.contains(&key) {
            return false;
        }
        self.meet();
        let version = self.story.states.len();
        let is_done = match self.evidence.claimed.get(version).copied() {
            None => self.is_complete(),
            Some(Some(at)) => !self.is_late(version) && self.make(at),
            Some(None) => !self.is_late(version) && self.choose(version),
        };
        if !is_done {
            for (chain, next) in self.chains.iter_mut().zip(&key.0) {
                chain.next = *next;
            }
            self.hopeless.insert(key);
        }
        is_done
    }

    /// What decides whether it can go on: the time of the record follows from the items used.
    fn standing(&self) -> (Vec<usize>, String) {
        let used = self.chains.iter().map(|chain| chain.next).collect();
        let newest = self.story.states.last().and_then(Option::as_ref);
        let content = newest.map(|state| format!("{} {:?}", state.version, state.content));
        (used, content.unwrap_or_default())
    }

    /// Items that changed nothing meet the newest version as soon as they can: they are in nobody's
    /// way.
    fn meet(&mut self) {
        let version = self.story.states.len() - 1;
        while let Some(chain) = self.heads().into_iter().find_map(|(chain, at)| {
            let bounds = self.story.bounds[at].expect("a result of a bulk item");
            let is_there = !self.ops[at].is_change() && bounds.contains(version);
            (is_there && self.agrees(version, self.ops[at])).then_some(chain)
        }) {
            self.chains[chain].next += 1;
        }
    }

    /// The next item of each chain, if all that were answered before it was sent have their place.
    fn heads(&self) -> Vec<(usize, usize)> {
        let heads: Vec<(usize, usize)> = self
            .chains
            .iter()
            .enumerate()
            .filter_map(|(chain, items)| Some((chain, items.head()?)))
            .collect();
        let is_first = |(_, at): &&(usize, usize)| {
            let mut others = heads.iter();
            !others.any(|(_, other)| self.ops[*other].is_before(self.ops[*at]))
        };
        heads.iter().filter(is_first).copied().collect()
    }

    /// Whether an item has no version any more when this one is made.
    fn is_late(&mut self, version: usize) -> bool {
        let rest = self
            .chains
            .iter()
            .flat_map(|chain| &chain.ops[chain.next..]);
        let late = rest.copied().find(|at| {
            let newest = self.story.bounds[*at].map(|bounds| bounds.newest);
            newest.is_some_and(|newest| newest < version)
        });
        if let Some(at) = late {
            let op = self.ops[at];
            self.note(
                version,
                format!("before version {version} the model has no place for\n{op}"),
            );
        }
        late.is_some()
    }

    fn is_complete(&mut self) -> bool {
        let rest = self.chains.iter().find_map(Chain::head);
        if let Some(at) = rest {
            let op = self.ops[at];
            let version = self.story.states.len();
            self.note(
                version,
                format!("until the end the model has no place for\n{op}"),
            );
        }
        rest.is_none()
    }

    /// Makes a free version by one of the items that come next.
    fn choose(&mut self, version: usize) -> bool {
        let mut choices = self.heads();
        choices.retain(|(_, at)| self.is_choice(version, *at));
        choices.sort_by_key(|(_, at)| self.story.bounds[*at].map(|bounds| bounds.newest));
        for (chain, at) in &choices {
            self.chains[*chain].next += 1;
            if self.make(*at) {
                return true;
            }
            self.chains[*chain].next -= 1;
        }
        if choices.is_empty() {
            self.note(
                version,
                format!("version {version} was made by nothing that was answered"),
            );
        }
        false
    }

    fn is_choice(&self, version: usize, at: usize) -> bool {
        let op = self.ops[at];
        let mark = op.request.body().and_then(|body| self.rules.mark_in(body));
        let is_within = self.story.bounds[at].is_some_and(|bounds| bounds.contains(version));
        let seen = &self.evidence.marks[version];
        op.is_change() && is_within && (seen.is_none() || seen.as_ref() == mark)
    }

    /// Makes the next version by this op and goes on, if the model says the same.
    fn make(&mut self, at: usize) -> bool {
        let version = self.story.states.len();
        match self.made(version, self.ops[at]) {
            Ok(state) => self.story.states.push(Some(state)),
            Err(problem) => {
                self.note(version, problem);
                return false;
            }
        }
        self.story.makers.push(at);
        let is_done = self.go_on();
        if !is_done {
            self.story.states.pop();
            self.story.makers.pop();
        }
        is_done
    }

    /// The state that an op makes, if that is what was answered and seen.
    fn made(&self, version: usize, op: &Op) -> Result<State, String> {
        let before = self.state(version - 1, self.evidence.touches[version - 1].last());
        let state = match apply(self.rules, before.as_ref(), &op.request) {
            Verdict::Done(outcome, state) if Some(outcome) == op.outcome() => state,
            verdict => {
                let before = before.map_or("no record".to_owned(), |state| state.to_string());
                return Err(format!(
                    "over {before}\nthe model says {verdict}\nnot\n{op}"
                ));
            }
        };
        if op
            .shown()
            .is_some_and(|shown| shown.source() != state.source.as_deref())
        {
            return Err(format!(
                "source_updated_at is {:?} after\n{op}",
                state.source
            ));
        }
        let is_possible = |source: &Option<String>| {
            let touch = *source > state.source && self.evidence.touches[version].contains(source);
            *source == state.source || touch
        };
        if !self.evidence.sources[version].iter().all(is_possible) {
            let (shown, first) = (&self.evidence.sources[version], &state.source);
            return Err(format!(
                "source_updated_at was {shown:?}, and {first:?} after\n{op}"
            ));
        }
        match self.evidence.seen[version] {
            Some(shown) if !shows(shown, &state.content) => Err(format!(
                "version {version} was shown as {}, the model says {} after\n{op}",
                Value::Object(shown.body.clone()),
                Value::Object(state.content),
            )),
            _ => Ok(state),
        }
    }

    /// The record in a version, after a time that came with equal content.
    fn state(&self, version: usize, touch: Option<&Option<String>>) -> Option<State> {
        let state = self.story.states[version].clone()?;
        let source = state.source.clone().max(touch.cloned().flatten());
        Some(State { source, ..state })
    }

    /// Whether an item that changed nothing can have met this version.
    fn agrees(&self, version: usize, op: &Op) -> bool {
        let touches = self.evidence.touches[version].iter().map(Some);
        touches.chain([None]).any(|touch| {
            let before = self.state(version, touch);
            let verdict = apply(self.rules, before.as_ref(), &op.request);
            matches!(verdict, Verdict::Done(outcome, _) if Some(outcome) == op.outcome())
        })
    }

    fn note(&mut self, version: usize, problem: String) {
        if version > self.deepest.0 {
            self.deepest = (version, problem);
        }
    }
}
