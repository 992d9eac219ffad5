//! `Idempotency-Key` on the two sending endpoints, rule by rule.

mod faults;
mod hang_ups;
mod ignored;
mod log;
mod outcomes;
mod races;
mod replays;
mod retention;
mod waiting;
