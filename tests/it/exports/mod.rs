//! Calls to other systems that are safe to repeat.

mod live;
mod processes;
mod receivers;
mod saving;
mod secrecy;
mod stories;
