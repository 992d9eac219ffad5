//! The server's own log file.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::error::PostgresError;

/// Above this size in bytes the log is emptied at the next start of the server.
const MAX_BYTES: u64 = 10 * 1024 * 1024;

/// How many lines an error shows.
const TAIL_LINES: usize = 20;

/// How much of the end is read for them, in bytes.
const TAIL_BYTES: u64 = 16 * 1024;

/// The part of the log that one run of the server writes.
#[derive(Debug)]
pub(super) struct RunLog {
    path: PathBuf,
    start: u64,
}

impl RunLog {
    /// Opens the log for a new run, emptied first if it has grown too long.
    pub(super) fn open(path: PathBuf) -> Result<(Self, File), PostgresError> {
        let open = || -> io::Result<(File, u64)> {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)?;
            if file.metadata()?.len() > MAX_BYTES {
                file.set_len(0)?;
            }
            let start = file.metadata()?.len();
            Ok((file, start))
        };
        let (file, start) = open().map_err(PostgresError::io("open", &path))?;
        Ok((Self { path, start }, file))
    }

    /// The last lines of this run; empty when they can't be read.
    pub(super) fn tail(&self) -> String {
        let text = self.end_of_run().unwrap_or_default();
        let mut lines = VecDeque::with_capacity(TAIL_LINES + 1);
        for line in String::from_utf8_lossy(&text).lines() {
            lines.push_back(line.to_owned());
            if lines.len() > TAIL_LINES {
                lines.pop_front();
            }
        }
        Vec::from(lines).join("\n")
    }

    fn end_of_run(&self) -> io::Result<Vec<u8>> {
        let size = fs::metadata(&self.path)?.len();
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(
            self.start.max(size.saturating_sub(TAIL_BYTES)),
        ))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_is_of_this_run_and_a_long_log_is_emptied() {
        let root = tempfile::tempdir().expect("folder");
        let path = root.path().join("postgres.log");
        fs::write(&path, "an earlier run\n").expect("write");
        let (log, mut file) = RunLog::open(path.clone()).expect("open");
        assert_eq!(log.tail(), "");
        for line in 0..30 {
            writeln!(file, "line {line}").expect("write");
        }
        assert!(log.tail().starts_with("line 10\n") && log.tail().ends_with("line 29"));

        file.set_len(MAX_BYTES + 1).expect("grow");
        RunLog::open(path.clone()).expect("open");
        assert_eq!(fs::metadata(&path).expect("metadata").len(), 0);
    }
}
