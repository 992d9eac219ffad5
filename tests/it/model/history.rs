//! What was asked and answered, and when.

use std::fmt;

use serde_json::Value;

use super::plan::{Form, Target};
use super::rules::{Change, Members, Outcome, Request};

/// After how many nanoseconds a server may turn somebody away, by the code that it then gives: what
/// it lets a caller wait in its queue, and for a database that doesn't answer.
const WAITS: &[(&str, u64)] = &[
    ("overloaded", 5_000_000_000),
    ("database_unavailable", 2_000_000_000),
];

/// One request, or one item of a bulk request, with its answer. Times are nanoseconds since the
/// round began: sent not before `start`, answered not after `end`.
#[derive(Debug)]
pub struct Op {
    /// Of its own in the round.
    pub number: u64,
    pub client: usize,
    pub server: usize,
    pub target: Target,
    pub request: Request,
    pub place: Option<Place>,
    pub start: u64,
    pub end: u64,
    pub answer: Answer,
}

/// Where an item stood.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The bulk request's own number.
    pub bulk: u64,
    pub index: usize,
    pub form: Form,
}

/// What was answered.
#[derive(Debug)]
pub enum Answer {
    /// A record.
    Shown(Shown),
    /// The result of an item: no version, no content.
    Listed {
        status: u16,
        outcome: Outcome,
        id: Value,
    },
    /// No record.
    Refused(u16),
    /// 503 with this code: nothing was done.
    TurnedAway(String),
    /// Nothing was done because another item of an atomic request is faulty.
    Dropped,
}

/// An answer with a record.
#[derive(Debug)]
pub struct Shown {
    pub status: u16,
    pub etag: String,
    /// None for a GET.
    pub outcome: Option<Outcome>,
    pub version: usize,
    pub body: Members,
}

impl Answer {
    /// An answer that is no success.
    pub fn refusal(status: u16, code: &str) -> Self {
        match status {
            503 => Self::TurnedAway(code.to_owned()),
            _ => Self::Refused(status),
        }
    }
}

impl Shown {
    /// A text member, none when it is null.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }

    /// When the caller's own system changed the record.
    pub fn source(&self) -> Option<&str> {
        self.text("source_updated_at")
    }
}

impl Op {
    pub fn shown(&self) -> Option<&Shown> {
        match &self.answer {
            Answer::Shown(shown) => Some(shown),
            _ => None,
        }
    }

    /// What the write came to, if it was taken.
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.answer {
            Answer::Shown(shown) => shown.outcome,
            Answer::Listed { outcome, .. } => Some(*outcome),
            Answer::Refused(_) | Answer::TurnedAway(_) | Answer::Dropped => None,
        }
    }

    /// What it was and came to, for counting.
    pub fn label(&self) -> String {
        let how = self.place.map_or("single", |_| "bulk");
        match (&self.answer, self.outcome()) {
            (Answer::Refused(status), _) => format!("{how} {status}"),
            (Answer::TurnedAway(code), _) => format!("{how} {code}"),
            (Answer::Dropped, _) => format!("{how} dropped"),
            (_, Some(outcome)) => format!("{how} {outcome:?}").to_lowercase(),
            (_, None) => "read".to_owned(),
        }
    }

    /// Whether it made a version.
    pub fn is_change(&self) -> bool {
        self.outcome().is_some_and(Outcome::is_change)
    }

    /// Whether a server that turns it away for this reason had let it wait long enough. A machine
    /// with too much to do is nobody's fault; giving up early, as after too many lost races, is.
    pub fn has_waited(&self, code: &str) -> bool {
        let mut waits = WAITS.iter();
        waits.any(|(known, wait)| *known == code && self.end - self.start > *wait)
    }

    /// Whether it was answered before the other one was sent.
    pub fn is_before(&self, other: &Self) -> bool {
        self.end < other.start
    }

    /// Whether an earlier item of the same request.
    pub fn is_earlier_item(&self, other: &Self) -> bool {
        match (self.place, other.place) {
            (Some(one), Some(two)) => one.bulk == two.bulk && one.index < two.index,
            _ => false,
        }
    }
}

/// One line of a report.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |nanos: u64| nanos / 1_000;
        let (start, end) = (micros(self.start), micros(self.end));
        write!(f, "#{} [{start}..{end} µs] ", self.number)?;
        write!(f, "client {} server {} ", self.client, self.server)?;
        if let Some(Place { bulk, index, form }) = self.place {
            write!(f, "{form:?} {bulk}.{index} ")?;
        }
        write!(f, "{}", self.request)?;
        match &self.answer {
            Answer::Shown(shown) => {
                let outcome = shown
                    .outcome
                    .map_or("read".to_owned(), |o| format!("{o:?}"));
                let body = Value::Object(shown.body.clone());
                write!(f, " => {outcome} v{} {body}", shown.version)
            }
            answer => write!(f, " => {answer:?}"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.change {
            Change::Read(_) => "GET",
            Change::Put(_) => "POST",
            Change::Patch(_) => "PATCH",
        };
        f.write_str(method)?;
        if let Some(version) = self.if_match {
            write!(f, " if-match {version}")?;
        }
        if self.if_none_match {
            f.write_str(" if-none-match *")?;
        }
        match self.body() {
            Some(body) => write!(f, " {}", Value::Object(body.clone())),
            None => Ok(()),
        }
    }
}
