//! Erasing a person's traces in automations: what waits for them is not sent, and nothing tells whom
//! runs were about.

use uuid::Uuid;

use super::runs;
use crate::database::Connection;
use crate::erasure::Person;
use crate::outbox;
use crate::resources::customers;

/// The eraser of automations. Runs about the person's own record lose their person in any case, runs
/// about their number only while no other record of the store has it.
///
/// # Errors
/// When the database fails.
pub async fn forget(connection: &mut Connection, person: &Person) -> sqlx::Result<()> {
    let Person {
        store_id, phone, ..
    } = person;
    let is_shared = customers::has_phone(&mut *connection, *store_id, phone).await?;
    let contact = (!is_shared).then(|| runs::contact(*store_id, phone));
    let mut ids = Vec::new();
    if let Some(contact) = &contact {
        ids.extend(of_contact(connection, *store_id, contact).await?);
    }
    if let Some(customer_id) = person.customer_id {
        ids.extend(of_record(connection, *store_id, customer_id).await?);
    }
    ids.sort_unstable();
    ids.dedup();
    // Locked in everybody's order before they change.
    sqlx::query_scalar!(
        "select id from automation_runs where store_id = $1 and id = any($2) order by id for update",
        store_id,
        &ids,
    )
    .fetch_all(&mut *connection)
    .await?;
    let cancelled = sqlx::query_scalar!(
        "update automation_runs
        set status = 'skipped', reason = 'recipient_erased', once = null, updated_at = $3
        where store_id = $1 and id = any($2) and status = 'scheduled'
        returning id",
        store_id,
        &ids,
        person.now,
    )
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query!(
        "update automation_runs
        set contact = null,
            recipient = null,
            input = null,
            -- a record's stays what keeps it from a second run; a person's goes
            once = case when once = contact then null else once end,
            external_id = case when resource is null then null else external_id end
        where store_id = $1 and id = any($2)",
        store_id,
        &ids,
    )
    .execute(&mut *connection)
    .await?;
    outbox::remove(connection, *store_id, &cancelled).await
}

async fn of_contact(
    connection: &mut Connection,
    store_id: i64,
    contact: &[u8],
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select id from automation_runs where store_id = $1 and contact = $2",
        store_id,
        contact,
    )
    .fetch_all(connection)
    .await
}

async fn of_record(
    connection: &mut Connection,
    store_id: i64,
    record_id: Uuid,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select id from automation_runs where store_id = $1 and record_id = $2",
        store_id,
        record_id,
    )
    .fetch_all(connection)
    .await
}
