//! What commands print: one JSON object or lines for people, messages on standard error.

use std::error::Error;
use std::io::Write as _;

use serde::Serialize;

/// Where results go.
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// The result: as JSON, or the lines for people.
    pub fn result(&self, value: &impl Serialize, lines: &[String]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, value)?;
            writeln!(out)?;
        } else {
            for line in lines {
                writeln!(out, "{line}")?;
            }
        }
        out.flush()
    }

    /// A text as it is.
    pub fn text(&self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// A message on the way.
    pub fn message(&self, text: &str) {
        // Nobody is there to be told when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Why the command failed, in one line.
    pub fn failed(&self, error: &(dyn Error + Send + Sync)) {
        let mut line = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !line.contains(&cause_text) {
                line = format!("{line}: {cause_text}");
            }
            source = cause.source();
        }
        self.message(&format!("keyfold: {}", line.replace('\n', " ")));
    }
}
