//! The tests of the whole: a file per promise.

mod authorisation;
mod bad_input;
mod command_line;
mod crashes;
mod documents;
mod feed;
mod hang_ups;
mod identity;
mod lanes;
mod layers;
mod lost_commits;
mod lost_races;
mod model;
mod orders;
mod overload;
mod plans;
mod races;
mod readme;
mod real_orders;
mod resources;
mod settings;
mod shutdown;
mod slow_clients;
mod support;
