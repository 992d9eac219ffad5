//! Between the network and the routes: everything a request meets before its route knows of it.
//!
//! ```text
//!  accept       cap on connections, shutdown
//!  └ socket       deadlines of headers and of stalled clients
//!    └ hyper        HTTP/1
//!      └ connection   deadline of the body; drains what nobody read
//!        └ outer        request id, 414 and 431, panics, problem bodies, log, metrics
//!          └ routes       401 → 404 → 403
//!                         → rate_limit 429 → shed 503
//!                         → body 415 → 413 → 400, 408
//! ```
//!
//! The first five stand around every request; `rate_limit`, `shed` and `body` are called by the
//! routes, in the contract's order.

mod accept;
mod answer;
mod body;
mod connection;
mod deadline;
mod fault_log;
mod limits;
mod open;
mod outer;
mod pot;
mod rate_limit;
mod request_id;
mod shed;
mod socket;

#[cfg(test)]
mod tests;

pub use accept::{raise_file_limit, serve};
pub use answer::SharedBytes;
pub use body::{WholeBody, media_type, read_whole, stream};
pub use limits::Limits;
pub use outer::wrap;
pub use pot::{Holder, Portion, Pot};
pub use rate_limit::{BucketState, Decision, RateLimiter};
pub use request_id::{REQUEST_ID, RequestId};
pub use shed::{Gate, Permit, hold_back};
