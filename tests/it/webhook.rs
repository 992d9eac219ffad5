//! The provider's webhook: who may speak there, and what comes of what is said.

mod people;
mod signatures;
