//! The `keyfold` binary.

fn main() {}
