//! The database's schema: migrations that are part of the binary.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, Executor as _, PgConnection, PgExecutor};

use crate::database::Database;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// A migration waits for locks no longer than this, because every insert waits behind it.
const LOCK_TIMEOUT: &str = "set lock_timeout = '3s'";
/// How often it tries again after that.
const MOST_ATTEMPTS: u32 = 10;

/// Why a database could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It belongs to something else.
    #[error(
        "this database has tables that are not Keyfold's (for example `{0}`): nothing was changed; \
         use an empty database"
    )]
    Foreign(String),
    /// It was made by another version.
    #[error("this database has migrations that this keyfold does not know: use a newer keyfold")]
    Newer,
    /// A migration failed.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What `migrate` did.
#[derive(Debug, serde::Serialize)]
pub struct Migrated {
    /// The migrations that were applied now.
    pub applied: Vec<String>,
    /// The newest one that is applied.
    pub current: String,
}

/// Applies what is missing. Safe to run twice and from two places at once.
///
/// # Errors
/// A foreign or newer database, which is left as it is, or a failure.
pub async fn migrate(database_url: &str) -> Result<Migrated, SchemaError> {
    let mut connection = PgConnection::connect(database_url).await?;
    refuse_foreign(&mut connection).await?;
    let before = applied(&mut connection).await?;
    connection.execute(LOCK_TIMEOUT).await?;
    let mut attempt = 1;
    while let Err(error) = MIGRATIONS.run(&mut connection).await {
        if attempt == MOST_ATTEMPTS || !is_lock_timeout(&error) {
            return Err(error.into());
        }
        attempt += 1;
        tracing::info!(attempt, "a table is in use, the migration tries again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let names = |version: &i64| format!("{version:04}");
    let after = applied(&mut connection).await?;
    connection.close().await?;
    Ok(Migrated {
        applied: after
            .iter()
            .filter(|version| !before.contains(version))
            .map(names)
            .collect(),
        current: after.last().map(names).unwrap_or_default(),
    })
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let source = match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        _ => return false,
    };
    source
        .as_database_error()
        .and_then(|error| error.code())
        .as_deref()
        == Some("55P03")
}

/// Whether every migration of this binary is applied.
///
/// # Errors
/// When the database can't be asked.
pub async fn is_current(pool: &Database) -> sqlx::Result<bool> {
    let known = is_known(pool).await?;
    let applied = if known {
        versions(pool).await?
    } else {
        Vec::new()
    };
    Ok(MIGRATIONS
        .iter()
        .all(|migration| applied.contains(&migration.version)))
}

/// The versions that are applied, oldest first.
async fn applied(connection: &mut PgConnection) -> sqlx::Result<Vec<i64>> {
    if is_known(&mut *connection).await? {
        versions(connection).await
    } else {
        Ok(Vec::new())
    }
}

/// Whether anything was ever applied.
async fn is_known(db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(db)
        .await
}

async fn versions(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar("select version from _sqlx_migrations where success order by version")
        .fetch_all(db)
        .await
}

/// Refuses a database that belongs to something else, before anything is changed.
async fn refuse_foreign(connection: &mut PgConnection) -> Result<(), SchemaError> {
    // Tables first: those that another `migrate` makes meanwhile come with what it has applied.
    let table: Option<String> = sqlx::query_scalar(
        "select tablename::text
        from pg_catalog.pg_tables
        where schemaname not in ('pg_catalog', 'information_schema')
            and tablename <> '_sqlx_migrations'
            and schemaname not like 'citus%' and schemaname not like 'columnar%'
        order by tablename
        limit 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let applied = applied(connection).await?;
    let ours = |version: &i64| MIGRATIONS.version_exists(*version);
    if applied.iter().any(|version| !ours(version)) {
        return Err(SchemaError::Newer);
    }
    match table {
        Some(table) if applied.is_empty() => Err(SchemaError::Foreign(table)),
        _ => Ok(()),
    }
}
