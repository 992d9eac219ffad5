//! What every request shares: the pool, the settings, the clock, the limits. No logic.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::Config;
use crate::database::{self, Database};
use crate::vitals::Vitals;

/// Connections kept free of requests, for keys, stores and the cleaners.
const RESERVED_CONNECTIONS: u32 = 1;
/// How long a request waits for a connection. There are never more requests than connections, so a
/// longer wait means that the database can't be reached.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a statement may take: what Postgres allows it (`statement_timeout` below), and a margin
/// for the answer to arrive.
pub const STATEMENT_DEADLINE: Duration = Duration::from_secs(11);

/// Cheap to clone.
#[derive(Clone)]
pub struct State {
    /// Connections to the one database.
    pub pool: Database,
    /// The settings.
    pub config: Arc<Config>,
    /// The time and fresh ids.
    pub clock: Clock,
    /// Database work that no hang-up may cut; shutdown waits for it.
    pub tasks: TaskTracker,
    /// Cancelled when the process is to end.
    pub shutdown: CancellationToken,
    /// How the tasks get on that the service can't be without.
    pub vitals: Vitals,
}

impl State {
    /// State over a pool.
    #[must_use]
    pub fn new(pool: Database, config: Config, clock: Clock) -> Self {
        Self {
            pool,
            config: Arc::new(config),
            clock,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            vitals: Vitals::default(),
        }
    }

    /// The same with connections of its own, made and used in the runtime that is entered now.
    #[must_use]
    pub fn with_own_connections(&self, limits: database::Limits) -> Self {
        Self {
            pool: Database::new(self.pool.options().clone(), limits),
            ..self.clone()
        }
    }

    /// How many requests may use the database at once, besides the lanes of writes.
    #[must_use]
    pub fn request_slots(&self) -> usize {
        let most = self.pool.limits().max_connections;
        most.saturating_sub(RESERVED_CONNECTIONS).max(1) as usize
    }
}

/// A database whose connections give up on their own: on statements, on locks, on forgotten
/// transactions, and on us when we are gone. Nothing connects until the first use.
#[must_use]
pub fn connect_lazily(options: PgConnectOptions, max_connections: u32) -> Database {
    let options = options.application_name("keyfold").options([
        ("statement_timeout", "10s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "10s"),
        // A statement ends with its client, so that its locks don't outlive a connection that we
        // dropped; and a client that can't be reached any more is no client.
        ("client_connection_check_interval", "1s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "20s"),
        ("timezone", "UTC"),
        // Every statement looks rows up by key. A plan that was made while a table was empty, and
        // kept, must not scan it when it is large.
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        // Nor read it whole once a batch, to compare each row with each key.
        ("enable_material", "off"),
        // A plan is kept, so it has to be right for a table that has grown since. Rows count as much
        // as pages here: else walking a store of twenty records looks as cheap as finding one.
        ("cpu_tuple_cost", "1"),
        ("cpu_index_tuple_cost", "1"),
        // Costs that rule plans out, or count rows as pages, would have small statements compiled: 100 ms
        // for the few tables that have no index to be read by.
        ("jit", "off"),
        // Planning anew for each batch cost more than the plans that are kept.
        ("plan_cache_mode", "force_generic_plan"),
    ]);
    Database::new(
        options,
        database::Limits {
            max_connections,
            acquire: ACQUIRE_TIMEOUT,
            statement: STATEMENT_DEADLINE,
        },
    )
}
