//! Keyfold: a self-hosted commerce upsert API. The modules in reading order.

// What a request is made of.
pub mod clock;
pub mod config;
pub mod error;
pub mod telemetry;
pub mod values;
// The database.
pub mod postgres;
// Who may ask, and how much.
pub mod edge;
