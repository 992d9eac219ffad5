//! Erasing a person's traces in exports. What is left of their deliveries are ids.

use crate::database::Connection;
use crate::erasure::Person;

/// The eraser of exports. That the person was erased is told to receivers by the event.
///
/// # Errors
/// When the database fails.
pub async fn forget(connection: &mut Connection, person: &Person) -> sqlx::Result<()> {
    let Some(customer_id) = person.customer_id else {
        return Ok(());
    };
    sqlx::query!(
        "update export_deliveries
        set external_id = null, error_code = null, response_status = null
        where store_id = $1 and record_id = $2",
        person.store_id,
        customer_id,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "update export_results
        set external_id = null, error_code = null, key = null
        where store_id = $1 and record_id = $2 and resource = 'customers'",
        person.store_id,
        customer_id,
    )
    .execute(&mut *connection)
    .await?;
    // A digest of what was sent could be guessed at.
    sqlx::query!(
        "delete from export_log where store_id = $1 and record_id = $2",
        person.store_id,
        customer_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}
