//! The tests of the whole: a file per promise.

mod orders;
mod support;
