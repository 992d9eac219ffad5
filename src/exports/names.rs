//! External ids of people, which are looked up at reading: no row of ours keeps them.

use uuid::Uuid;

use super::deliveries::Delivery;
use super::log::Entry;
use super::results::RunResult;
use crate::database::Connection;
use crate::engine::events::NameLookup;

/// Something that is told of a record.
pub trait OfRecord {
    /// The resource's path and the record.
    fn record(&self) -> (&str, Uuid);
    /// Takes its external id.
    fn set_external_id(&mut self, external_id: Option<String>);
}

macro_rules! of_record {
    ($($kind:ty),+) => {
        $(impl OfRecord for $kind {
            fn record(&self) -> (&str, Uuid) {
                (&self.resource, self.record_id)
            }

            fn set_external_id(&mut self, external_id: Option<String>) {
                self.external_id = external_id;
            }
        })+
    };
}
of_record!(RunResult, Entry, Delivery);

/// Fills in the external ids that are not kept, since they name people.
///
/// # Errors
/// When the database fails.
pub async fn name(
    connection: &mut Connection,
    store_id: i64,
    lookups: &[(&'static str, NameLookup)],
    rows: &mut [impl OfRecord],
) -> sqlx::Result<()> {
    for (resource, lookup) in lookups {
        let of_resource = rows.iter().map(OfRecord::record);
        let of_resource = of_resource.filter(|(path, _)| path == resource);
        let ids: Vec<Uuid> = of_resource.map(|(_, id)| id).collect();
        if ids.is_empty() {
            continue;
        }
        let names = lookup(&mut *connection, store_id, &ids).await?;
        for row in rows.iter_mut() {
            let (path, record_id) = row.record();
            if path == *resource {
                let named = names.iter().find(|(id, _)| *id == record_id);
                row.set_external_id(named.map(|(_, name)| name.clone()));
            }
        }
    }
    Ok(())
}
