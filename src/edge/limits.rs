//! The bounds of a connection, in one place so that a test can shorten them.

use std::time::Duration;

use crate::config::Config;

/// How long, how much and how many the edge takes before it ends a connection.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's backlog until one ends.
    pub max_connections: usize,
    /// Connections of one address at a time. Behind a proxy all come from one.
    pub max_of_address: usize,
    /// From the connect, or from the first byte of a later request, to the end of its headers.
    pub header_timeout: Duration,
    /// How long a connection may be idle between two requests.
    pub keep_alive_timeout: Duration,
    /// The longest wait for the next bytes of a body while somebody asks for them.
    pub body_idle_timeout: Duration,
    /// The longest time for a body that is read into memory as a whole.
    pub body_total_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_stall_timeout: Duration,
    /// How many bytes of a body that nobody read are thrown away before the answer is sent.
    pub drain_bytes: u64,
    /// How long that may take; also how long a closing connection waits for the client to stop
    /// sending.
    pub drain_timeout: Duration,
    /// How long a single write, or a document, waits for its batch to begin.
    pub queue_timeout: Duration,
    /// How long a batch waits for a lock of somebody else before the writes that it is about are
    /// held up, and the others written.
    pub lock_wait: Duration,
    /// From the begin of the shutdown, how long new connections are taken: load balancers notice by
    /// then that this process is not ready any more.
    pub shutdown_notice: Duration,
    /// From then on, how long a connection that rests is kept, since a request may be on its way.
    pub shutdown_linger: Duration,
    /// From then on, to the cut of what still runs.
    pub shutdown_grace: Duration,
}

impl Limits {
    /// Those that an operator can set, and the others as they are.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            max_of_address: config.max_connections_per_address as usize,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_of_address: 3072,
            header_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            body_idle_timeout: Duration::from_secs(30),
            body_total_timeout: Duration::from_secs(120),
            write_stall_timeout: Duration::from_secs(60),
            drain_bytes: 1024 * 1024,
            drain_timeout: Duration::from_secs(5),
            queue_timeout: Duration::from_secs(5),
            lock_wait: Duration::from_millis(50),
            shutdown_notice: Duration::from_millis(500),
            shutdown_linger: Duration::from_millis(1_500),
            shutdown_grace: Duration::from_secs(23),
        }
    }
}
