//! One connection: from hyper's requests to the router's, and back.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::body::{Arriving, Leftover};
use super::limits::Limits;
use super::socket::{Activity, Open, Socket};

/// A connection with what it needs to answer.
pub(super) struct Connection {
    socket: Socket,
    exchange: Exchange,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        router: Router,
        limits: Arc<Limits>,
        shutdown: CancellationToken,
    ) -> Self {
        let activity = Arc::new(Activity::default());
        let socket = Socket::new(stream, Arc::clone(&activity), &limits);
        Self {
            socket,
            exchange: Exchange {
                router,
                limits,
                activity,
                shutdown,
            },
        }
    }

    /// What is under way on it.
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.exchange.activity)
    }

    /// Answers requests until the connection ends; after `rest`, only the one in progress.
    pub(super) async fn run(self, http: &http1::Builder, rest: CancellationToken) {
        let Self { socket, exchange } = self;
        let service = service_fn(move |request| exchange.answer(request));
        let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
        // The connection first: a request that has arrived is read before the end is seen.
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => Some(ended),
            () = rest.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// What each request of a connection needs.
struct Exchange {
    router: Router,
    limits: Arc<Limits>,
    activity: Arc<Activity>,
    /// Cancelled when no connection is to be used again.
    shutdown: CancellationToken,
}

impl Exchange {
    /// Called by hyper when the headers are complete; the socket must know that at once, so this is
    /// no `async fn`.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Sent>, Infallible>> + Send + use<> {
        let open = self.activity.begin();
        let (activity, limits) = (Arc::clone(&self.activity), Arc::clone(&self.limits));
        let expects = request.headers().contains_key(header::EXPECT);
        let sends_key = request.headers().contains_key(header::AUTHORIZATION);
        let (request, leftover) = with_deadlines(request, &activity, &limits);
        let answer = self.router.clone().call(request);
        let shutdown = self.shutdown.clone();
        async move {
            let Ok(mut response) = answer.await;
            if sends_key && response.status() != StatusCode::UNAUTHORIZED {
                activity.note_key();
            }
            let is_read = take_leftover(leftover, expects, &limits).await;
            if !is_read {
                activity.mark_unread();
            }
            if !is_read || shutdown.is_cancelled() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok(response.map(|body| Sent { body, _open: open }))
        }
    }
}

/// Where a body that was not read to its end comes back.
type Leftovers = oneshot::Receiver<Leftover>;

/// Puts the deadlines around a request's body, if it has one.
fn with_deadlines(
    request: Request<Incoming>,
    activity: &Arc<Activity>,
    limits: &Limits,
) -> (Request<Body>, Option<Leftovers>) {
    let (parts, incoming) = request.into_parts();
    if incoming.is_end_stream() {
        return (Request::from_parts(parts, Body::empty()), None);
    }
    let (give_back, leftovers) = oneshot::channel();
    let body = Arriving::new(
        incoming,
        limits.body_idle_timeout,
        give_back,
        Arc::clone(activity),
    );
    (Request::from_parts(parts, Body::new(body)), Some(leftovers))
}

/// Reads what the handler left of the body, so that the client can finish sending and look at the
/// answer. False when the connection can't be used again.
async fn take_leftover(leftovers: Option<Leftovers>, expects: bool, limits: &Limits) -> bool {
    // Nothing there: the body was read to its end, or a task still reads it.
    let Some(Ok(leftover)) = leftovers.map(|mut leftovers| leftovers.try_recv()) else {
        return true;
    };
    match leftover {
        Leftover::Stalled => false,
        // The client waits for a word before it sends the body: the answer is that word.
        Leftover::Unread { polled: false, .. } if expects => false,
        Leftover::Unread { incoming, .. } => {
            super::body::drain(incoming, limits.drain_bytes, limits.drain_timeout).await
        }
    }
}

/// An answer's body; the request counts as open until it is dropped.
struct Sent {
    body: Body,
    _open: Open,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
