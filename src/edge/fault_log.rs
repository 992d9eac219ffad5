//! The log lines of failed requests: the chain of causes, once, with the request id.
//!
//! Never in a line: paths, queries, bodies, keys, phone numbers; a route is named by its pattern.

use std::error::Error as StdError;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::request_id::RequestId;
use crate::error::Error;

/// The time in which one kind of line is written at most once.
const QUIET: Duration = Duration::from_secs(1);

/// Lets one line a second through and counts the others.
#[derive(Default)]
pub(super) struct Throttle(Mutex<Lines>);

#[derive(Default)]
struct Lines {
    last: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// `Some(lines left out since the last one)` when a line may be written now.
    pub(super) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut lines = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines
            .last
            .is_some_and(|last| now.duration_since(last) < QUIET)
        {
            lines.left_out += 1;
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.left_out))
    }
}

/// Logs failures; those that come in floods at most once a second each.
#[derive(Default)]
pub(super) struct FaultLog {
    overloaded: Throttle,
    unavailable: Throttle,
    unknown: Throttle,
    refused: Throttle,
}

impl FaultLog {
    /// Writes what an operator should know of a failed request; most failures are the client's and
    /// say nothing here.
    pub(super) fn write(&self, error: &Error, id: &RequestId, method: &str, route: &str) {
        let (kind, cause) = match error {
            Error::Internal(cause) => {
                let cause = chain(cause.as_ref());
                tracing::error!(request_id = %id, method, route, cause, "internal error");
                return;
            }
            Error::DatabaseUnavailable(cause) => (&self.unavailable, chain(cause.as_ref())),
            Error::OutcomeUnknown(cause) | Error::SendUnknown(cause) => {
                (&self.unknown, chain(cause.as_ref()))
            }
            Error::Overloaded => (&self.overloaded, String::new()),
            // The database's own words could repeat the value.
            Error::ValueRefused(_) => (&self.refused, String::new()),
            _ => return,
        };
        if let Some(left_out) = kind.admit() {
            let code = error.code();
            tracing::warn!(request_id = %id, method, route, code, cause, left_out, "request failed");
        }
    }
}

/// An error and its sources, joined by colons.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        // Many errors repeat their source's words in their own.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_others_are_counted() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.admit_at(now), Some(0));
        assert_eq!(throttle.admit_at(now), None);
        assert_eq!(throttle.admit_at(now + QUIET / 2), None);
        assert_eq!(throttle.admit_at(now + QUIET), Some(2));
        assert_eq!(throttle.admit_at(now + QUIET), None);
    }

    #[test]
    fn the_chain_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("saving the order")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk full"));
        assert_eq!(chain(&error), "saving the order: disk full");
    }
}
