//! Automations: what an effective change sets off, once.
//!
//! ```text
//!  change ─ event ─ evaluate: who asks for it, does the record match?     one transaction with
//!                     └ a run, and its place in the outbox                the feed's position
//!                         └ (delay) ─ execute: does it still match?
//!                                       └ the run's message is accepted   one transaction
//! ```
//!
//! An event's effects and the position behind it are one transaction (`engine::consumers`), a run and
//! its message are another, and each has a unique key: a change has at most one run of an automation,
//! a run at most one message, whoever is killed in between.

mod about;
pub mod condition;
pub mod erase;
mod evaluate;
mod execute;
pub mod http;
pub mod input;
pub mod rules;
pub mod runs;
mod shape;
pub mod sources;
pub mod webhook;

use crate::engine::consumers::Consumer;
use crate::outbox::{Handler, Hints};

/// Who follows the events.
pub const CONSUMER: &str = "automations";
/// Runs, in the outbox.
pub const KIND: &str = "run";

/// Lets events have their effects.
#[must_use]
pub fn consumer() -> Consumer {
    describe_metrics();
    Consumer {
        name: CONSUMER,
        evaluate: |state, connection, store_id, seen| {
            Box::pin(evaluate::evaluate(state, connection, store_id, seen))
        },
    }
}

/// The work that automations leave in the outbox, and who does it.
#[must_use]
pub fn handlers(hints: &Hints) -> Vec<(&'static str, Handler)> {
    vec![(KIND, execute::handler(hints.clone()))]
}

fn describe_metrics() {
    metrics::describe_counter!(
        "keyfold_automation_runs_total",
        "Runs of automations, by what they came to: scheduled, sent, skipped, failed."
    );
}

/// Counts what a run came to.
fn count(status: &'static str, runs: usize) {
    let runs = u64::try_from(runs).unwrap_or(u64::MAX);
    metrics::counter!("keyfold_automation_runs_total", "status" => status).increment(runs);
}
