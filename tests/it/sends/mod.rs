//! Sends, what becomes of them, and what is read about them.

mod bodies;
mod erasure;
mod erasure_races;
mod order;
mod outage;
mod reading;
mod sandbox;
mod stores;
mod templates;
