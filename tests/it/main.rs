//! The tests of the whole: a file per promise.

mod authorisation;
mod documents;
// mod identity;
mod layers;
mod orders;
// mod races;
mod resources;
mod support;
