//! Messages through WhatsApp, over a fake of its API that has bad days: nothing that may have been
//! sent is ever sent again, and nothing that was not is lost.

mod bad_days;
mod errors;
mod pace;
mod pauses;
mod requests;
mod secrecy;
mod slow_downs;
mod statuses;
mod waits;
