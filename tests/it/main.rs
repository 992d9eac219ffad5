//! The tests of the whole: a file per promise.

// mod identity;
// mod races;
mod authorisation;
mod crashes;
mod documents;
mod feed;
mod hang_ups;
mod layers;
mod lost_commits;
mod orders;
mod real_orders;
mod resources;
mod support;
