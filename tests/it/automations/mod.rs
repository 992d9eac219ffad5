//! Automations: what an effective change sets off, once.

mod bulk;
mod delays;
mod erasure;
mod erasure_races;
mod faults;
mod firing;
mod late_contacts;
mod outcomes;
mod pauses;
mod people;
mod reentry;
mod retention;
mod runs;
mod saving;
mod webhook;
mod webhook_faults;
