//! Who hands a message to the person: one small interface, and what can come of it.

mod errors;
pub mod whatsapp;

use std::time::Duration;

use super::messages::Outgoing;
use super::status::Status;
use super::templates::Slots;

/// A message that is to be handed over.
#[derive(Clone, Copy, Debug)]
pub struct Handing<'a> {
    /// What, and to whom.
    pub message: &'a Outgoing,
    /// The how manieth time it is tried, from 1.
    pub attempt: i32,
    /// Where the provider wants a template's variables.
    pub slots: Option<&'a Slots>,
}

/// What came of handing a message over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The provider has it.
    Accepted {
        /// Its own id.
        provider_message_id: String,
        /// What is known at once.
        statuses: &'static [Status],
    },
    /// The provider does not take it, now or later.
    Refused(Reason),
    /// It is certain that it was not sent; to be tried again.
    NotSent {
        /// Why.
        reason: Reason,
        /// Not before this time is over, if the provider says so.
        after: Option<Duration>,
    },
    /// It was not sent, and nothing of this channel will be for a while.
    Paused {
        /// Why.
        reason: Reason,
        /// How long.
        pause: Duration,
    },
    /// It may have been sent.
    Unknown(Reason),
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The provider's number as text, or one of our words.
    pub code: String,
    /// In words.
    pub detail: Option<String>,
}

impl Reason {
    /// A reason without words.
    #[must_use]
    pub fn of(code: &str) -> Self {
        Self {
            code: code.to_owned(),
            detail: None,
        }
    }
}

/// The provider of one store, ready to be used.
#[derive(Clone, Debug)]
pub enum Provider {
    /// Accepts, records and "delivers" without leaving the machine.
    Sandbox,
    /// Meta's Cloud API.
    Whatsapp(whatsapp::Number),
}

impl Provider {
    /// Whether handing over the same message twice does no harm: then its beginning needs no mark.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        matches!(self, Self::Sandbox)
    }

    /// Hands a message over.
    pub async fn hand_over(&self, handing: Handing<'_>) -> Handed {
        match self {
            // Its whole effect is what is recorded.
            Self::Sandbox => Handed::Accepted {
                provider_message_id: format!("sandbox-{}", handing.message.id),
                statuses: &[Status::Sent, Status::Delivered],
            },
            Self::Whatsapp(number) => number.send(handing).await,
        }
    }
}
