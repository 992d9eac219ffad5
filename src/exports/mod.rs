//! Calls to other systems that are safe to repeat.
//!
//! ```text
//!  a change ─ event ─ consumer ─► delivery waits ─┐ outbox   ┌─ skip: the log says it was sent
//!  a run    ─ walk ─────────────► delivery waits ─┴─► pump ──┴─ call ─► log, run, delivery settled
//! ```
//!
//! What is exported is the record as it is when its call is made. A call that was taken is written
//! down in the log, in the transaction that settles its delivery, and the log is asked before the
//! next one. Where a process is killed in between, the next call carries the same key: see
//! [`pump`].

// What a caller does.
pub mod http;
pub mod input;
pub mod save;
// What there is.
pub mod definitions;
pub mod deliveries;
pub mod log;
pub mod names;
pub mod pages;
pub mod results;
pub mod runs;
// What a call is made of.
mod content;
mod destination;
mod headers;
mod lease;
mod pace;
mod plan;
mod schedule;
pub mod signing;
// What happens.
pub mod clean;
mod consumer;
pub mod erase;
mod pump;
mod settle;

pub use consumer::consumer;

use crate::outbox::{Handler, Hints};
use crate::targets::Guard;

/// Exports that have something to send, in the outbox.
pub const KIND: &str = "export";
/// Who follows events for exports.
const CONSUMER: &str = "exports";

/// What the routes of exports share. Cheap to clone.
#[derive(Clone)]
pub struct Exports {
    /// Judges where exports lead.
    pub guard: Guard,
    /// Where this process's worker is told of new work.
    pub hints: Hints,
}

/// The work that exports leave in the outbox, and who does it.
///
/// # Errors
/// When TLS can't be set up.
pub fn handlers(
    guard: &Guard,
) -> Result<Vec<(&'static str, Handler)>, Box<dyn std::error::Error + Send + Sync>> {
    metrics::describe_counter!(
        "keyfold_export_calls_total",
        "Deliveries of exports, by what came of them: sent, skipped, failed, nothing."
    );
    Ok(vec![(KIND, pump::handler(guard.client()?))])
}
