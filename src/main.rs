//! The `keyfold` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyfold::cli::main()
}
