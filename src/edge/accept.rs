//! The accept loop: HTTP/1 on hyper with deadlines everywhere, a cap on connections, and a
//! shutdown that finishes what was begun.
//!
//! HTTP/1 only: a client that speaks HTTP/2 without TLS is rare, and hyper-util's detection of the
//! version waits without limit for the first byte.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::fault_log::Throttle;
use super::limits::Limits;
use super::open::Connections;

/// hyper's buffers of one connection, each way; no header block may be larger.
const BUFFER_BYTES: usize = 64 * 1024;

/// How long a connection that is to go for another one may take before the next one has to.
const NEXT_ONE: Duration = Duration::from_millis(50);

/// The pause after an accept that failed for want of a resource, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Raises the soft limit of open files to the hard one and returns it: each connection is a file.
///
/// # Errors
/// When the system refuses; the soft limit is then what it was.
pub fn raise_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Serves a router until `shutdown` is cancelled and every connection has ended.
///
/// A shutdown loses no request that a client has sent:
///
/// ```text
///  shutdown ── notice ──▶ backlog taken, ── linger ──▶ resting connections ── grace ──▶ cut
///   every answer says     listener closed               closed
///   `Connection: close`
/// ```
///
/// `/readyz` must have turned 503 before.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let server = Server::new(router, limits, shutdown);
    let waiting = server.accept_until_shutdown(&listener).await;
    server.take_backlog(listener, waiting);
    server.drain().await;
}

/// A connection that the kernel has made.
type Accepted = (TcpStream, SocketAddr);

/// What all connections share.
struct Server {
    router: Router,
    limits: Arc<Limits>,
    http: Arc<http1::Builder>,
    slots: Arc<Semaphore>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
    /// Its begin: answers close their connections from then on.
    shutdown: CancellationToken,
    /// The end of connections that rest.
    rest: CancellationToken,
    /// The hard end.
    cut: CancellationToken,
}

impl Server {
    fn new(router: Router, limits: Limits, shutdown: CancellationToken) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.keep_alive_timeout.max(limits.header_timeout))
            .max_buf_size(BUFFER_BYTES)
            // Who has said all that there is to say may still listen.
            .half_close(true);
        Self {
            router,
            http: Arc::new(http),
            slots: Arc::new(Semaphore::new(limits.max_connections)),
            connections: Arc::default(),
            limits: Arc::new(limits),
            tasks: TaskTracker::new(),
            shutdown,
            rest: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Gives the connection that waits for a place in the end, if there is one.
    async fn accept_until_shutdown(&self, listener: &TcpListener) -> Option<Accepted> {
        let failures = Throttle::default();
        let mut waiting = None;
        let accept_all = async {
            loop {
                match listener.accept().await {
                    Ok(accepted) => {
                        if !self.has_share(accepted.1.ip()) {
                            continue;
                        }
                        waiting = Some(accepted);
                        let slot = self.slot().await;
                        if let Some((stream, address)) = waiting.take() {
                            self.spawn(stream, address, slot);
                        }
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        if let Some(left_out) = failures.admit() {
                            tracing::warn!(%error, left_out, "no connection can be accepted");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        let notice = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(self.limits.shutdown_notice).await;
        };
        tokio::select! {
            () = notice => {}
            () = accept_all => {}
        }
        waiting
    }

    /// Whether an address may have one more connection, for which one of its own is closed that rests
    /// if it has all that it may have.
    fn has_share(&self, address: IpAddr) -> bool {
        self.connections.of(address) < self.limits.max_of_address
            || self.connections.end_one(Some(address))
    }

    /// A place for a connection: while there is none, one after the other that rests is closed for it.
    async fn slot(&self) -> OwnedSemaphorePermit {
        let mut acquiring = std::pin::pin!(Arc::clone(&self.slots).acquire_owned());
        loop {
            if self.slots.available_permits() == 0 {
                self.connections.end_one(None);
            }
            if let Ok(slot) = tokio::time::timeout(NEXT_ONE, acquiring.as_mut()).await {
                return slot.expect("the semaphore is never closed");
            }
        }
    }

    /// Takes the connections that clients have made already, as far as there are places, and refuses
    /// others from then on.
    fn take_backlog(&self, listener: TcpListener, mut waiting: Option<Accepted>) {
        while let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned()
            && let Some(accepted) = waiting
                .take()
                .map(Ok)
                .or_else(|| listener.accept().now_or_never())
        {
            if let Ok((stream, address)) = accepted {
                self.spawn(stream, address, slot);
            }
        }
        drop(listener);
    }

    fn spawn(&self, stream: TcpStream, address: SocketAddr, slot: OwnedSemaphorePermit) {
        // Small answers must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let (router, limits) = (self.router.clone(), Arc::clone(&self.limits));
        let connection = Connection::new(stream, router, limits, self.shutdown.clone());
        let http = Arc::clone(&self.http);
        let (rest, cut) = (self.rest.child_token(), self.cut.clone());
        let activity = connection.activity();
        let entry = self.connections.enter(address.ip(), activity, rest.clone());
        self.tasks.spawn(async move {
            let _place = (entry, slot);
            let _counted = Counted::new();
            cut.run_until_cancelled_owned(connection.run(&http, rest))
                .await;
        });
    }

    async fn drain(self) {
        self.tasks.close();
        let linger = self.limits.shutdown_linger;
        let _ = tokio::time::timeout(linger, self.tasks.wait()).await;
        self.rest.cancel();
        if tokio::time::timeout(self.limits.shutdown_grace, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = self.tasks.len(),
                "connections cut at the hard limit"
            );
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}

/// Whether an accept failed because that one client went away.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::ConnectionRefused
    )
}

/// One connection in the gauge.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("keyfold_http_connections").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("keyfold_http_connections").decrement(1.0);
    }
}
