//! Cleaners: every table that grows with time has one.

use std::time::Duration;

use crate::engine::events;
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
    }
    if deleted > 0 {
        tracing::info!(deleted, "old events deleted");
    }
}
