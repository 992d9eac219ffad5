//! Calls to other systems that are safe to repeat.

mod kills;
mod lists;
mod live;
mod neighbours;
mod processes;
mod pump;
mod receivers;
mod saving;
mod secrecy;
mod stories;
