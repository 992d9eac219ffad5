//! Keyfold: a self-hosted commerce upsert API. The modules in reading order.

// What a request is made of.
pub mod clock;
pub mod config;
pub mod error;
pub mod secrets;
pub mod targets;
pub mod telemetry;
pub mod tls;
pub mod values;
// The database.
pub mod database;
pub mod postgres;
pub mod schema;
pub mod state;
pub mod vitals;
// Who may ask, and how much; whose turn it is.
pub mod auth;
pub mod edge;
pub mod shares;
pub mod tenancy;
pub mod turns;
// What every resource shares, and what belongs to people.
pub mod engine;
pub mod erasure;
// The resources, a file each.
pub mod resources;
// Messages to shoppers, calls to other systems, and what is left to be done after a commit.
pub mod exports;
pub mod messaging;
pub mod outbox;
// What changes set off.
pub mod automations;
// The whole.
pub mod app;
pub mod cli;
pub mod maintenance;
pub mod openapi;
