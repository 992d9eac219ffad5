//! Teams, stores and keys: their statements. Small control tables, written by the command line.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use uuid::Uuid;

/// A merchant, or whoever runs stores together.
#[derive(Clone, Debug, Serialize)]
pub struct Team {
    /// Printed by `keyfold team create`.
    pub id: i64,
    /// For people.
    pub name: String,
}

/// A shop: everything that is pushed belongs to one.
#[derive(Clone, Debug, Serialize)]
pub struct Store {
    /// What stands in the path of a request.
    pub id: i64,
    /// Whose it is.
    pub team_id: i64,
    /// For people.
    pub name: String,
    /// The merchant's own name for it.
    pub external_id: Option<String>,
    /// ISO 3166 letters: how national spellings of phone numbers are read.
    pub default_country: Option<String>,
    /// `active` or `paused`.
    pub status: String,
}

/// What people see of a key; the key itself is shown once.
#[derive(Clone, Debug, Serialize)]
pub struct KeyInfo {
    /// Names the key, for example to revoke it.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Whose it is.
    pub team_id: i64,
    /// The one store it may use; null: every store of the team.
    pub store_id: Option<i64>,
    /// Its last characters.
    pub hint: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A new team.
///
/// # Errors
/// When the database fails.
pub async fn create_team(
    db: impl PgExecutor<'_>,
    name: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Team> {
    sqlx::query_as!(
        Team,
        "insert into teams (name, created_at) values ($1, $2) returning team_id as id, name",
        name,
        now,
    )
    .fetch_one(db)
    .await
}

/// All teams, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn list_teams(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Team>> {
    sqlx::query_as!(
        Team,
        "select team_id as id, name from teams order by team_id"
    )
    .fetch_all(db)
    .await
}

/// A team.
///
/// # Errors
/// When the database fails.
pub async fn find_team(db: impl PgExecutor<'_>, team_id: i64) -> sqlx::Result<Option<Team>> {
    sqlx::query_as!(
        Team,
        "select team_id as id, name from teams where team_id = $1",
        team_id,
    )
    .fetch_optional(db)
    .await
}

/// Locks what a store has of its own among the control tables and what is set for it: so that their
/// number can be bounded and nobody's insert is lost to another's.
///
/// # Errors
/// When the database fails.
pub async fn lock_store(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        "select store_id from stores where store_id = $1 for no key update",
        store_id,
    )
    .fetch_one(db)
    .await?;
    Ok(())
}

/// The stores of a team, oldest first, at most so many.
///
/// # Errors
/// When the database fails.
pub async fn stores_of(
    db: impl PgExecutor<'_>,
    team_id: i64,
    limit: i64,
) -> sqlx::Result<Vec<Store>> {
    sqlx::query_as!(
        Store,
        "select store_id as id, team_id, name, external_id, default_country, status
        from stores
        where team_id = $1
        order by store_id
        limit $2",
        team_id,
        limit,
    )
    .fetch_all(db)
    .await
}

/// The name of a key.
///
/// # Errors
/// When the database fails.
pub async fn key_name(db: impl PgExecutor<'_>, key_id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("select name from api_keys where key_id = $1", key_id)
        .fetch_optional(db)
        .await
}

/// What `keyfold store create` says of a store.
pub struct NewStore<'a> {
    /// Whose it is.
    pub team_id: i64,
    /// For people.
    pub name: &'a str,
    /// The merchant's own name for it, once per team.
    pub external_id: Option<&'a str>,
    /// ISO 3166 letters.
    pub default_country: Option<&'a str>,
}

/// A new store, active.
///
/// # Errors
/// When the database fails, the team is unknown or its external id is taken.
pub async fn create_store(
    db: impl PgExecutor<'_>,
    new: NewStore<'_>,
    now: DateTime<Utc>,
) -> sqlx::Result<Store> {
    sqlx::query_as!(
        Store,
        "insert into stores (team_id, name, external_id, default_country, created_at)
        values ($1, $2, $3, $4, $5)
        returning store_id as id, team_id, name, external_id, default_country, status",
        new.team_id,
        new.name,
        new.external_id,
        new.default_country,
        now,
    )
    .fetch_one(db)
    .await
}

/// All stores, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn list_stores(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Store>> {
    sqlx::query_as!(
        Store,
        "select store_id as id, team_id, name, external_id, default_country, status
        from stores
        order by store_id",
    )
    .fetch_all(db)
    .await
}

/// The stores with these ids, whatever their status.
///
/// # Errors
/// When the database fails.
pub async fn find_stores(db: impl PgExecutor<'_>, ids: &[i64]) -> sqlx::Result<Vec<Store>> {
    sqlx::query_as!(
        Store,
        "select store_id as id, team_id, name, external_id, default_country, status
        from stores
        where store_id = any($1)",
        ids,
    )
    .fetch_all(db)
    .await
}

/// Pauses a store or lets it go on; `None` when there is no such store.
///
/// # Errors
/// When the database fails.
pub async fn set_store_status(
    db: impl PgExecutor<'_>,
    store_id: i64,
    status: &str,
) -> sqlx::Result<Option<Store>> {
    sqlx::query_as!(
        Store,
        "update stores
        set status = $2
        where store_id = $1
        returning store_id as id, team_id, name, external_id, default_country, status",
        store_id,
        status,
    )
    .fetch_optional(db)
    .await
}

/// What is stored of a new key.
pub struct NewKey<'a> {
    /// Names the key.
    pub id: Uuid,
    /// Whose it is.
    pub team_id: i64,
    /// The one store it may use.
    pub store_id: Option<i64>,
    /// For people.
    pub name: &'a str,
    /// SHA-256 of the whole key.
    pub sha256: &'a [u8],
    /// Its last characters.
    pub hint: &'a str,
}

/// Stores a key; `false` when the store is not one of that team.
///
/// # Errors
/// When the database fails or the team is unknown.
pub async fn create_key(
    db: impl PgExecutor<'_>,
    new: NewKey<'_>,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into api_keys (key_id, team_id, store_id, name, key_sha256, hint, created_at)
        select $1, $2, $3, $4, $5, $6, $7
        where $3::bigint is null
            or exists (select from stores where store_id = $3 and team_id = $2)",
        new.id,
        new.team_id,
        new.store_id,
        new.name,
        new.sha256,
        new.hint,
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The keys of a team, oldest first, revoked ones too.
///
/// # Errors
/// When the database fails.
pub async fn list_keys(db: impl PgExecutor<'_>, team_id: i64) -> sqlx::Result<Vec<KeyInfo>> {
    sqlx::query_as!(
        KeyInfo,
        "select key_id as id, name, team_id, store_id, hint, created_at, last_used_at, revoked_at
        from api_keys
        where team_id = $1
        order by key_id",
        team_id,
    )
    .fetch_all(db)
    .await
}

/// Revokes a key for good; `None` when there is no such key. Doing it twice keeps the first time.
///
/// # Errors
/// When the database fails.
pub async fn revoke_key(
    db: impl PgExecutor<'_>,
    key_id: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<KeyInfo>> {
    sqlx::query_as!(
        KeyInfo,
        "update api_keys
        set revoked_at = coalesce(revoked_at, $2)
        where key_id = $1
        returning key_id as id, name, team_id, store_id, hint, created_at, last_used_at, revoked_at",
        key_id,
        now,
    )
    .fetch_optional(db)
    .await
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyScope {
    /// Names the key.
    pub key_id: Uuid,
    /// Whose it is.
    pub team_id: i64,
    /// The one store it may use.
    pub store_id: Option<i64>,
}

/// The keys with these digests that are not revoked.
///
/// # Errors
/// When the database fails.
pub async fn find_keys(
    db: impl PgExecutor<'_>,
    sha256s: &[[u8; 32]],
) -> sqlx::Result<Vec<(Vec<u8>, KeyScope)>> {
    let sha256s: Vec<&[u8]> = sha256s.iter().map(<[u8; 32]>::as_slice).collect();
    let rows = sqlx::query!(
        "select key_sha256, key_id, team_id, store_id
        from api_keys
        where key_sha256 = any($1) and revoked_at is null",
        &sha256s as &[&[u8]],
    )
    .fetch_all(db)
    .await?;
    let scope = |key_id, team_id, store_id| KeyScope {
        key_id,
        team_id,
        store_id,
    };
    Ok(rows
        .into_iter()
        .map(|row| (row.key_sha256, scope(row.key_id, row.team_id, row.store_id)))
        .collect())
}

/// Notes that keys were used.
///
/// # Errors
/// When the database fails.
pub async fn touch_keys(
    db: impl PgExecutor<'_>,
    key_ids: &[Uuid],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update api_keys
        set last_used_at = $2
        where key_id = any($1)",
        key_ids,
        now,
    )
    .execute(db)
    .await?;
    Ok(())
}
