//! The lines of a stream, in slices of what has arrived.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, StreamExt as _};

use crate::edge::Portion;
use crate::error::Error;

/// A line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without its end.
    Text(Bytes),
    /// Longer than is taken; skipped without being kept.
    TooLong,
}

/// Lines that are there together.
pub struct Taken {
    /// None: the stream is over.
    pub lines: Vec<Line>,
    /// The memory that they take, until it is dropped.
    pub held: Portion,
}

/// How long a stream waits for memory, of which others hold too much.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cuts a stream of bytes into lines.
pub struct Lines<S> {
    chunks: S,
    /// What arrived and was not taken yet.
    buffer: BytesMut,
    /// How much of the buffer holds no line end.
    searched: usize,
    most_bytes: usize,
    /// The beginning of a line that is too long was thrown away.
    skipping: bool,
    ended: bool,
    /// Met when everything before it was taken.
    fault: Option<Error>,
    /// Arrived, but there was no memory for it yet.
    late: Option<Bytes>,
    /// The memory of what has arrived and was not taken yet.
    held: Portion,
}

impl<S> Lines<S>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    /// Lines of at most `most_bytes` each, without their ends. What arrives is held on the account of
    /// a portion that is empty so far.
    pub fn new(chunks: S, most_bytes: usize, held: Portion) -> Self {
        Self {
            chunks,
            buffer: BytesMut::new(),
            searched: 0,
            most_bytes,
            skipping: false,
            ended: false,
            fault: None,
            late: None,
            held,
        }
    }

    /// The next lines: at least one, unless the stream is over, then as many as have arrived, up to
    /// these bounds. Waits for memory when other bodies hold too much.
    ///
    /// # Errors
    /// What kept the stream from being read to its end.
    pub async fn take(&mut self, most_lines: usize, most_bytes: usize) -> Result<Taken, Error> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < most_lines && bytes < most_bytes {
            if let Some(line) = self.next_buffered() {
                if let Line::Text(text) = &line {
                    bytes += text.len();
                }
                lines.push(line);
            } else if !self.arrive(lines.is_empty()).await? {
                break;
            }
            // A well-packed body is there chunk after chunk: others want this thread too.
            tokio::task::consume_budget().await;
        }
        if lines.is_empty()
            && let Some(fault) = self.fault.take()
        {
            return Err(fault);
        }
        // What is left in the buffer stays with it.
        let held = self.held.split(self.held.units() - self.buffer.len());
        Ok(Taken { lines, held })
    }

    /// Takes another chunk into the buffer; `false` when there is none now, or none any more.
    async fn arrive(&mut self, wait: bool) -> Result<bool, Error> {
        if self.ended || self.fault.is_some() {
            return Ok(false);
        }
        let chunk = match self.late.take() {
            Some(chunk) => Some(Ok(chunk)),
            None if wait => self.chunks.next().await,
            // What has not arrived yet belongs to the next slice.
            None => match self.chunks.next().now_or_never() {
                Some(chunk) => chunk,
                None => return Ok(false),
            },
        };
        match chunk {
            Some(Ok(chunk)) => {
                if self.held.grow(chunk.len()).is_err() {
                    if !wait {
                        self.late = Some(chunk);
                        return Ok(false);
                    }
                    self.held.grow_patiently(chunk.len(), PATIENCE).await?;
                }
                self.buffer.extend_from_slice(&chunk);
            }
            None => self.ended = true,
            // The lines before the fault are whole and are written first; a part of a line is not.
            Some(Err(error)) => self.fault = Some(error),
        }
        Ok(true)
    }

    /// The next line that is there as a whole and not blank.
    fn next_buffered(&mut self) -> Option<Line> {
        loop {
            if self.searched == 0 && !self.skipping {
                let empty = self.buffer.iter().take_while(|byte| **byte == b'\n');
                self.buffer.advance(empty.count());
            }
            let end = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            let line = match end {
                Some(at) => {
                    let line = self.buffer.split_to(self.searched + at).freeze();
                    self.buffer.advance(1);
                    self.searched = 0;
                    line
                }
                None if self.ended && (self.skipping || !self.buffer.is_empty()) => {
                    self.searched = 0;
                    self.buffer.split().freeze()
                }
                None => {
                    self.searched = self.buffer.len();
                    if self.searched > self.most_bytes + 1 {
                        self.skipping = true;
                        drop(self.held.split(self.buffer.len()));
                        self.buffer.clear();
                        self.searched = 0;
                    }
                    return None;
                }
            };
            if std::mem::take(&mut self.skipping) {
                return Some(Line::TooLong);
            }
            // Measured before blanks are cut off: how the chunks fell must not decide.
            let line = without_return(line);
            if line.len() > self.most_bytes {
                return Some(Line::TooLong);
            }
            let line = trimmed(line);
            if !line.is_empty() {
                return Some(Line::Text(line));
            }
        }
    }
}

/// Without the carriage return of the line's end.
fn without_return(line: Bytes) -> Bytes {
    let end = line.len() - usize::from(line.ends_with(b"\r"));
    line.slice(..end)
}

/// Without the blanks around (those of RFC 8259, section 2), so that a line of blanks is a blank
/// line.
fn trimmed(line: Bytes) -> Bytes {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
    let start = line
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(line.len());
    let end = line
        .iter()
        .rposition(|byte| !is_blank(byte))
        .map_or(start, |at| at + 1);
    line.slice(start..end)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::edge::{Holder, Pot};

    async fn lines_of(chunks: Vec<Result<&'static str, Error>>, most: usize) -> Vec<String> {
        let chunks = stream::iter(chunks.into_iter().map(|chunk| chunk.map(Bytes::from)));
        let pot = Pot::of_bytes(1 << 20);
        let held = pot.take(Holder::Store(1), 0).expect("nothing");
        let mut lines = Lines::new(chunks, most, held);
        let mut found = Vec::new();
        loop {
            match lines.take(2, 1_000).await {
                Ok(taken) if taken.lines.is_empty() => {
                    drop(taken);
                    drop(lines);
                    assert_eq!(pot.free(), 1 << 20, "all of it came back");
                    return found;
                }
                Ok(taken) => found.extend(taken.lines.into_iter().map(|line| match line {
                    Line::Text(text) => String::from_utf8_lossy(&text).into_owned(),
                    Line::TooLong => "<too long>".to_owned(),
                })),
                Err(error) => {
                    found.push(format!("<{}>", error.code()));
                    return found;
                }
            }
        }
    }

    #[tokio::test]
    async fn lines_are_cut_wherever_the_chunks_end() {
        for chunks in [
            vec![Ok("a\nbb\r\n\n  \nccc")],
            vec![Ok("a"), Ok("\nb"), Ok("b\r"), Ok("\n\n  \nc"), Ok("cc")],
            vec![Ok("a\nbb\n"), Ok("ccc\n")],
        ] {
            assert_eq!(lines_of(chunks, 100).await, ["a", "bb", "ccc"]);
        }
    }

    #[tokio::test]
    async fn a_line_of_just_the_limit_is_taken_and_a_longer_one_skipped() {
        let chunks = vec![Ok("1234\n12345\n12"), Ok("3456789"), Ok("0\nok\n123456789")];
        let lines = lines_of(chunks, 4).await;
        assert_eq!(
            lines,
            ["1234", "<too long>", "<too long>", "ok", "<too long>"]
        );
    }

    #[tokio::test]
    async fn a_line_is_measured_with_its_blanks_however_the_chunks_fall() {
        for chunks in [
            vec![Ok("  ok\r\n   ok\n    \n \x0cok\n")],
            vec![Ok("  ok"), Ok("\r\n   "), Ok("ok\n    "), Ok("\n \x0cok\n")],
        ] {
            assert_eq!(lines_of(chunks, 4).await, ["ok", "<too long>", "\x0cok"]);
        }
    }

    #[tokio::test]
    async fn a_fault_is_met_after_the_whole_lines_before_it_and_drops_the_cut_one() {
        let lines = lines_of(vec![Ok("a\nb\nhal"), Err(Error::RequestTimeout)], 100).await;
        assert_eq!(lines, ["a", "b", "<request_timeout>"]);
    }
}
