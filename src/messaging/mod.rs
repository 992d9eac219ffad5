//! Messages to shoppers that are safe to repeat.
//!
//! ```text
//!  caller ─ send ─ one transaction: key claimed, message, event, outbox, answer saved ─► 201
//!                     └ outbox ─ worker ─ deliver: turn, begin, provider, settle
//!  provider ─ webhook ─ inbound: signature, stored as it came ─► 200
//!                         └ outbox ─ worker ─ statuses, service windows, wishes
//! ```
//!
//! A message reaches the provider at most once: see [`deliver`]. What became of it is told by
//! [`status`], at any time and in any order.

// What a caller does.
pub mod http;
pub mod idempotency;
pub mod input;
pub mod send;
// What there is.
pub mod channels;
pub mod contacts;
pub mod messages;
pub mod status;
pub mod templates;
pub mod variables;
// What happens to it.
pub mod deliver;
pub mod erase;
pub mod inbound;
mod pace;
pub mod providers;

use crate::edge::Pot;
use crate::outbox::{Handler, Hints};
use crate::state::State;

use self::idempotency::InUse;
use self::providers::whatsapp::Api;

/// What the routes of messaging share. Cheap to clone.
#[derive(Clone)]
pub struct Messaging {
    /// Keys that requests of this process are at work with.
    pub in_use: InUse,
    /// Where this process's worker is told of new work.
    pub hints: Hints,
    /// All bodies of the provider's events in memory.
    pub event_bodies: Pot,
}

/// Bytes of the provider's events in memory.
const EVENT_BYTES: usize = 16 * 1_024 * 1_024;

impl Messaging {
    /// Messaging of a process, whose worker takes hints there.
    #[must_use]
    pub fn new(hints: Hints) -> Self {
        describe_metrics();
        Self {
            in_use: InUse::default(),
            hints,
            event_bodies: Pot::of_bytes(EVENT_BYTES),
        }
    }
}

/// The work that messaging leaves in the outbox, and who does it.
///
/// # Errors
/// When TLS can't be set up.
pub fn handlers(
    state: &State,
) -> Result<Vec<(&'static str, Handler)>, Box<dyn std::error::Error + Send + Sync>> {
    let api = Api::new(&state.config.whatsapp_base_url)?;
    Ok(vec![
        (deliver::KIND, deliver::handler(api)),
        (inbound::KIND, inbound::handler()),
    ])
}

fn describe_metrics() {
    metrics::describe_counter!(
        "keyfold_idempotency_total",
        "Sends with an Idempotency-Key, by what became of the key: claimed, replayed, mismatch, in_use."
    );
    metrics::describe_gauge!(
        "keyfold_idempotency_keys_in_use",
        "Keys that requests of this process are at work with."
    );
    metrics::describe_counter!(
        "keyfold_messages_settled_total",
        "Attempts to hand a message over, by what came of them."
    );
    metrics::describe_counter!(
        "keyfold_statuses_total",
        "Statuses that the provider told, by status."
    );
    metrics::describe_counter!(
        "keyfold_webhook_refused_total",
        "Events without a valid signature."
    );
}
