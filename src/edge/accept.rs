//! The accept loop: HTTP/1 on hyper with deadlines everywhere, a cap on connections, and a
//! shutdown that finishes what was begun.
//!
//! HTTP/1 only: a client that speaks HTTP/2 without TLS is rare, and hyper-util's detection of the
//! version waits without limit for the first byte.

use std::io;
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

/// hyper's buffers of one connection, each way; no header block may be larger.
const BUFFER_BYTES: usize = 64 * 1024;

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
    server.accept_until_shutdown(&listener).await;
    server.take_backlog(listener);
    server.drain().await;
}

/// What all connections share.
struct Server {
    router: Router,
    limits: Arc<Limits>,
    http: Arc<http1::Builder>,
    slots: Arc<Semaphore>,
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
            limits: Arc::new(limits),
            tasks: TaskTracker::new(),
            shutdown,
            rest: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    async fn accept_until_shutdown(&self, listener: &TcpListener) {
        let failures = Throttle::default();
        let accept_all = async {
            while let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await {
                match listener.accept().await {
                    Ok((stream, _)) => self.spawn(stream, slot),
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
    }

    /// Takes the connections that clients have made already, as far as there are places, and refuses
    /// others from then on.
    fn take_backlog(&self, listener: TcpListener) {
        while let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned()
            && let Some(accepted) = listener.accept().now_or_never()
        {
            if let Ok((stream, _)) = accepted {
                self.spawn(stream, slot);
            }
        }
        drop(listener);
    }

    fn spawn(&self, stream: TcpStream, slot: OwnedSemaphorePermit) {
        // Small answers must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let (router, limits) = (self.router.clone(), Arc::clone(&self.limits));
        let connection = Connection::new(stream, router, limits, self.shutdown.clone());
        let http = Arc::clone(&self.http);
        let (rest, cut) = (self.rest.clone(), self.cut.clone());
        self.tasks.spawn(async move {
            let _slot = slot;
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
