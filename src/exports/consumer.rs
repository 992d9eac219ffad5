//! From events to deliveries.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::definitions::{self, Live};
use super::deliveries::{self, Want};
use super::{CONSUMER, KIND};
use crate::database::Connection;
use crate::engine::consumers::{Consumer, Seen};
use crate::outbox;
use crate::resources::catalog;
use crate::state::State;

/// Ends the types of events that tell of an erasure.
const ERASED: &str = ".erased";

/// Who lets changed records wait for their calls.
#[must_use]
pub fn consumer() -> Consumer {
    Consumer {
        name: CONSUMER,
        evaluate: |state, connection, store_id, seen| {
            Box::pin(evaluate(state, connection, store_id, seen))
        },
    }
}

/// Gives the exports that have something to send now. One that pauses is woken as well: it may be
/// active again before this is committed, and would not be woken then.
async fn evaluate(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    seen: &[Seen],
) -> sqlx::Result<Vec<Uuid>> {
    let exports = definitions::live(&mut *connection, store_id).await?;
    let mut wants: BTreeMap<(Uuid, Uuid), Want> = BTreeMap::new();
    for event in seen {
        for export in exports.iter().filter(|export| is_wanted(event, export)) {
            let erased_at = is_erasure(event).then_some(event.created_at);
            let want = wants
                .entry((event.record_id, export.id))
                .or_insert_with(|| Want {
                    export_id: export.id,
                    resource: event.resource.clone(),
                    record_id: event.record_id,
                    external_id: event.external_id.clone(),
                    erased_at,
                });
            want.erased_at = want.erased_at.or(erased_at);
        }
    }
    let wants: Vec<Want> = wants.into_values().collect();
    deliveries::want(&mut *connection, store_id, &wants, None, &state.clock).await?;
    let mut woken: Vec<Uuid> = wants.iter().map(|want| want.export_id).collect();
    woken.sort_unstable();
    woken.dedup();
    let now = state.clock.now();
    for export_id in &woken {
        outbox::wake(&mut *connection, store_id, KIND, *export_id, now).await?;
    }
    Ok(woken)
}

fn is_erasure(event: &Seen) -> bool {
    event.kind.ends_with(ERASED)
}

/// Whether an event is one of those that an export is to tell of. Erasures concern whoever may have
/// got something of the person.
fn is_wanted(event: &Seen, export: &Live) -> bool {
    let is_listed = |path: &str| export.resources.iter().any(|resource| resource == path);
    // Messages have events, too, but are no resource.
    let is_resource = catalog::entry(&event.resource).is_some();
    let concerns = is_listed(&event.resource)
        || is_erasure(event)
            && catalog::ALL
                .iter()
                .any(|entry| entry.names_person && is_listed(entry.path));
    is_resource && concerns && export.from().is_before(event)
}
