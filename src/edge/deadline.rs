//! A timer that costs one look at the clock as long as nobody has to wait for it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A span of time that is started and stopped many times and rarely runs out.
pub(super) struct Deadline {
    after: Duration,
    at: Option<Instant>,
    /// Made at the first wait and reused: most connections never need it.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// A stopped deadline.
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            at: None,
            sleep: None,
        }
    }

    /// Starts the span; does nothing when it runs already.
    pub(super) fn start(&mut self) {
        if self.at.is_none() {
            self.at = Some(Instant::now() + self.after);
        }
    }

    /// Stops the span.
    pub(super) fn stop(&mut self) {
        self.at = None;
    }

    /// Ready when the span ran out; a stopped one is pending for ever.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else {
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}
