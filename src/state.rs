//! What every request shares: the pool, the settings, the clock, the limits. No logic.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgPool};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::Config;

/// Connections kept free of requests, for keys, stores and the cleaners.
const RESERVED_CONNECTIONS: u32 = 1;
/// A connection that rested longer is asked whether it still lives before it is used.
pub const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long a request waits for a connection. There are never more requests than connections, so a
/// longer wait means that the database can't be reached.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Cheap to clone.
#[derive(Clone)]
pub struct State {
    /// Connections to the one database.
    pub pool: PgPool,
    /// The settings.
    pub config: Arc<Config>,
    /// The time and fresh ids.
    pub clock: Clock,
    /// Database work that no hang-up may cut; shutdown waits for it.
    pub tasks: TaskTracker,
    /// Cancelled when the process is to end.
    pub shutdown: CancellationToken,
}

impl State {
    /// State over a pool.
    #[must_use]
    pub fn new(pool: PgPool, config: Config, clock: Clock) -> Self {
        Self {
            pool,
            config: Arc::new(config),
            clock,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// The same with connections of its own, made and used in the runtime that is entered now, for
    /// which its users wait so long.
    #[must_use]
    pub fn with_own_connections(&self, max_connections: u32, patience: Duration) -> Self {
        let options = self.pool.options().clone();
        let pool = options
            .max_connections(max_connections)
            .acquire_timeout(patience)
            .connect_lazy_with((*self.pool.connect_options()).clone());
        Self {
            pool,
            ..self.clone()
        }
    }

    /// How many requests may use the database at once, besides the lanes of writes.
    #[must_use]
    pub fn request_slots(&self) -> usize {
        let most = self.pool.options().get_max_connections();
        most.saturating_sub(RESERVED_CONNECTIONS).max(1) as usize
    }
}

/// A pool whose connections give up on their own: on statements, on locks, on forgotten
/// transactions. Nothing connects until the first use.
#[must_use]
pub fn connect_lazily(options: PgConnectOptions, max_connections: u32) -> PgPool {
    let options = options.application_name("keyfold").options([
        ("statement_timeout", "30s"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "30s"),
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
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .acquire_slow_threshold(Duration::from_secs(1))
        .test_before_acquire(false)
        .before_acquire(|connection, rested| {
            Box::pin(async move {
                if rested.idle_for > TRUSTED_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}
