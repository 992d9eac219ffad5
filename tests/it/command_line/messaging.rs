//! `keyfold channel`, `keyfold template` and `keyfold outbox`.

mod channels;
mod outbox;
mod templates;

use std::process::Output;

use serde_json::Value;

use super::stdout;

/// What a command that ended well printed as JSON.
#[track_caller]
fn printed(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_str(&stdout(output)).expect("one JSON value")
}
