//! The conformance suite: what every registered resource promises. It names none of them; a new
//! resource is held to it by its line in the registry.

mod bulk_documents;
mod bulk_streams;
mod dry_runs;
mod lists;
mod members;
mod patches;
mod preconditions;
mod races;
mod reading;
mod source_times;
mod tenancy;
mod upserts;
