//! What every test stands on: one private Postgres a run, a database per test made from a migrated
//! template, the whole service on a real socket, a real client.

pub mod app;
pub mod automations;
pub mod database;
pub mod exports;
pub mod held;
pub mod kinds;
pub mod load;
pub mod messaging;
pub mod meta;
mod meta_wire;
pub mod orders;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod receiver;
pub mod rows;
pub mod scale;
pub mod webhooks;
pub mod whatsapp;
