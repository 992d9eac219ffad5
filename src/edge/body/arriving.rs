//! A body on its way in. It must not stall, and what nobody reads of it must come back:
//!
//! ```text
//!  handler drops the body ──▶ at its end ────────▶ nothing to do
//!                        ├──▶ stalled ───────────▶ close after the answer
//!                        └──▶ bytes left ──▶ drain ──▶ end reached ──▶ connection goes on
//!                                                └──▶ too much ──────▶ close after the answer
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use crate::edge::deadline::Deadline;
use crate::edge::socket::Activity;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::edge) enum Cut {
    /// No byte for the whole idle time.
    #[error("no byte arrived in time")]
    Stalled,
    /// The connection or the framing broke.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
}

/// What is left of a body that was dropped before its end.
pub(in crate::edge) enum Leftover {
    /// The client sent nothing for too long.
    Stalled,
    /// There may be more to come.
    Unread {
        /// The rest.
        incoming: Incoming,
        /// Whether anybody asked for a byte: if so, `100 Continue` was sent where it was expected.
        polled: bool,
    },
}

/// A request's body with a deadline between its frames.
pub(in crate::edge) struct Arriving {
    /// Taken when it ended, well or badly.
    incoming: Option<Incoming>,
    idle: Deadline,
    polled: bool,
    stalled: bool,
    give_back: Option<oneshot::Sender<Leftover>>,
    activity: Arc<Activity>,
}

impl Arriving {
    /// Puts a deadline around `incoming`; what is left of it goes to `give_back`.
    pub(in crate::edge) fn new(
        incoming: Incoming,
        idle: Duration,
        give_back: oneshot::Sender<Leftover>,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            incoming: Some(incoming),
            idle: Deadline::new(idle),
            polled: false,
            stalled: false,
            give_back: Some(give_back),
            activity,
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        this.polled = true;
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.stop();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.incoming = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.incoming = None;
                Poll::Ready(Some(Err(Cut::Broken(error))))
            }
            Poll::Pending => {
                this.idle.start();
                this.idle.poll(cx).map(|()| {
                    this.incoming = None;
                    this.stalled = true;
                    Some(Err(Cut::Stalled))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let left = match self.incoming.take() {
            Some(incoming) if !incoming.is_end_stream() => Leftover::Unread {
                incoming,
                polled: self.polled,
            },
            _ if self.stalled => Leftover::Stalled,
            _ => return,
        };
        let unclaimed = self
            .give_back
            .take()
            .is_none_or(|back| back.send(left).is_err());
        if unclaimed {
            // The answer is on its way already; the connection will close behind it.
            self.activity.mark_unread();
        }
    }
}

/// Throws the rest of a body away. False when it has more than `max_bytes` or takes longer than
/// `within`; then the connection can't be used again.
pub(in crate::edge) async fn drain(
    mut incoming: Incoming,
    max_bytes: u64,
    within: Duration,
) -> bool {
    if incoming.size_hint().lower() > max_bytes {
        return false;
    }
    let to_the_end = async {
        let mut seen_bytes = 0;
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else { return false };
            seen_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            if seen_bytes > max_bytes {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(within, to_the_end)
        .await
        .unwrap_or(false)
}
