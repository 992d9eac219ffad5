//! Request bodies: how they arrive, what they are, and how they are read within bounds.

mod arriving;
mod media_type;
mod read;

pub(super) use arriving::{Arriving, Leftover, drain};
pub use media_type::media_type;
pub use read::{WholeBody, read_whole, stream};
