//! What runs beside the requests: cleaners, one for every table that grows with time, and a first
//! look at new tables for the planner's sake.

use std::time::Duration;

use crate::automations::runs;
use crate::engine::events;
use crate::exports;
use crate::messaging::{idempotency, inbound};
use crate::outbox;
use crate::state::State;
use crate::tenancy;

/// How often the cleaners run.
const EVERY: Duration = Duration::from_secs(600);

/// Runs the cleaners until shutdown.
pub async fn run(state: State) {
    loop {
        tokio::select! {
            () = state.shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        clean(&state).await;
    }
}

/// How often new tables are looked for.
const NEW_TABLES_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a table that has enough rows to tell something, which is some dozens. With one row it
/// looks as if walking the store cost as little as a look-up.
const TELLING_BYTES: i64 = 2 * 8_192;
/// Attempts to analyze before it is left to Postgres: we may not own the tables.
const MOST_ATTEMPTS: u32 = 30;
/// The tables that writes look rows up in, each with its statement.
const ANALYZE: &[(&str, &str)] = &[
    ("customers", "analyze customers"),
    ("orders", "analyze orders"),
    ("checkouts", "analyze checkouts"),
    ("shipments", "analyze shipments"),
    ("events", "analyze events"),
    ("contacts", "analyze contacts"),
    ("messages", "analyze messages"),
    ("idempotency_keys", "analyze idempotency_keys"),
    ("automation_runs", "analyze automation_runs"),
    ("export_deliveries", "analyze export_deliveries"),
    ("export_log", "analyze export_log"),
    ("export_results", "analyze export_results"),
];

/// Analyzes each table as soon as it holds some dozens of rows. Of a new table the planner knows
/// nothing, not even that a store can be all of it, and prepared statements keep plans that walk the
/// whole store until autovacuum comes by, a minute and perhaps a hundred thousand rows later.
pub async fn analyze_new_tables(state: State) {
    let mut attempts = 0;
    while attempts < MOST_ATTEMPTS {
        tokio::select! {
            () = state.shutdown.cancelled() => return,
            () = tokio::time::sleep(NEW_TABLES_EVERY) => {}
        }
        match analyze_once(&state).await {
            Ok(Progress::AllKnown) => return,
            Ok(Progress::Empty) => {}
            Ok(Progress::Analyzed) => attempts += 1,
            Err(error) => {
                attempts += 1;
                tracing::debug!(%error, "new tables are left to autovacuum");
            }
        }
    }
}

enum Progress {
    AllKnown,
    Empty,
    Analyzed,
}

async fn analyze_once(state: &State) -> sqlx::Result<Progress> {
    let names: Vec<&str> = ANALYZE.iter().map(|(name, _)| *name).collect();
    // -1 until the first analyze or vacuum.
    let unknown = sqlx::query!(
        r#"select relname::text as "name!", pg_relation_size(oid) > $2 as "tells!"
        from pg_class
        where relnamespace = current_schema()::regnamespace
            and relkind = 'r'
            and reltuples < 0
            and relname::text = any($1)"#,
        &names as &[&str],
        TELLING_BYTES,
    )
    .fetch_all(&state.pool)
    .await?;
    if unknown.is_empty() {
        return Ok(Progress::AllKnown);
    }
    let mut progress = Progress::Empty;
    for table in unknown.iter().filter(|table| table.tells) {
        if let Some((_, statement)) = ANALYZE.iter().find(|(name, _)| *name == table.name) {
            sqlx::query(*statement).execute(&state.pool).await?;
            progress = Progress::Analyzed;
        }
    }
    Ok(progress)
}

/// One round of all cleaners. What fails is logged and tried again in the next round.
pub async fn clean(state: &State) {
    let stores = match tenancy::list_stores(&state.pool).await {
        Ok(stores) => stores,
        Err(error) => {
            tracing::warn!(%error, "cleaning has to wait: the stores can't be listed");
            return;
        }
    };
    let mut deleted = 0;
    for store in stores {
        if state.shutdown.is_cancelled() {
            return;
        }
        match events::purge(state, store.id).await {
            Ok(count) => deleted += count,
            Err(failure) => tracing::warn!(store_id = store.id, ?failure, "events not purged"),
        }
        deleted += clean_effects(state, store.id).await;
    }
    if deleted > 0 {
        tracing::info!(deleted, "old rows deleted");
    }
}

/// What messaging, the outbox, automations and exports keep for a time.
async fn clean_effects(state: &State, store_id: i64) -> u64 {
    let mut deleted = 0;
    for (what, purged) in [
        (
            "idempotency keys",
            idempotency::purge(state, store_id).await,
        ),
        ("inbound messages", inbound::purge(state, store_id).await),
        ("outbox", outbox::purge(state, store_id).await),
        ("automation runs", runs::purge(state, store_id).await),
        ("exports", exports::clean::purge(state, store_id).await),
    ] {
        match purged {
            Ok(count) => deleted += count,
            Err(error) => tracing::warn!(store_id, what, %error, "not purged"),
        }
    }
    deleted
}
