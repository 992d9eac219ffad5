//! The byte stream under hyper: it knows when a client starts a request and doesn't finish its
//! headers, and when a client stops taking what is sent to it.
//!
//! ```text
//!            first byte              headers complete         answer sent
//!  idle ────────────────▶ headers ───────────────────▶ open ─────────────▶ idle
//!  keep_alive_timeout     header_timeout               the body's own
//!  (hyper's timer)        (this file)                  deadlines
//! ```
//!
//! hyper has one timer for idle and headers together; it gets the longer time, and the shorter one
//! runs here. A new connection starts under `header_timeout`: who connects has something to say.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::deadline::Deadline;
use super::limits::Limits;

/// What the socket and the service of one connection tell each other.
#[derive(Default)]
pub(super) struct Activity {
    requests: AtomicU64,
    open: AtomicBool,
    unread: AtomicBool,
    has_key: AtomicBool,
}

impl Activity {
    /// Says that a request's headers are complete, until the guard is dropped with its answer.
    pub(super) fn begin(self: &Arc<Self>) -> Open {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.open.store(true, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// Whether no request is under way.
    pub(super) fn rests(&self) -> bool {
        !self.open.load(Ordering::Relaxed)
    }

    /// Says that a valid key was sent.
    pub(super) fn note_key(&self) {
        self.has_key.store(true, Ordering::Relaxed);
    }

    /// Whether a valid key was ever sent.
    pub(super) fn has_key(&self) -> bool {
        self.has_key.load(Ordering::Relaxed)
    }

    /// Says that the connection ends while the client may still be sending.
    pub(super) fn mark_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }
}

/// A request on its way: from its headers to the last byte of its answer.
pub(super) struct Open(Arc<Activity>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.store(false, Ordering::Relaxed);
    }
}

/// A TCP stream with deadlines.
pub(super) struct Socket {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// The number of requests when `headers` was last started or stopped.
    requests_seen: u64,
    headers: Deadline,
    stall: Deadline,
    linger: Deadline,
    write_closed: bool,
}

impl Socket {
    /// Puts deadlines around a fresh connection.
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, limits: &Limits) -> Self {
        let mut headers = Deadline::new(limits.header_timeout);
        headers.start();
        Self {
            stream,
            activity,
            requests_seen: 0,
            headers,
            stall: Deadline::new(limits.write_stall_timeout),
            linger: Deadline::new(limits.drain_timeout),
            write_closed: false,
        }
    }

    /// Lets a write pass unless it has been stuck for too long.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall.stop();
            return written;
        }
        self.stall.start();
        self.stall
            .poll(cx)
            .map(|()| Err(timed_out("the client takes nothing")))
    }

    /// Throws away what the client still sends, until it closes or the time is up: closing with
    /// unread bytes makes a reset, and that can destroy the answer before the client reads it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0_u8; 8192];
        while self.linger.poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let requests = self.activity.requests.load(Ordering::Relaxed);
        if requests != self.requests_seen {
            self.requests_seen = requests;
            self.headers.stop();
        }
        if self.activity.open.load(Ordering::Relaxed) {
            return read;
        }
        if read.is_pending() {
            return self
                .headers
                .poll(cx)
                .map(|()| Err(timed_out("the headers don't arrive")));
        }
        if buffer.filled().len() > before {
            self.headers.start();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_stalled(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.write_closed = true;
            self.linger.start();
        }
        if self.activity.unread.load(Ordering::Relaxed) {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
