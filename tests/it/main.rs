//! The tests of the whole: a file per promise.

mod authorisation;
mod crashes;
mod documents;
mod feed;
mod hang_ups;
mod layers;
mod lost_commits;
mod orders;
mod overload;
mod real_orders;
mod resources;
mod shutdown;
mod slow_clients;
mod support;
