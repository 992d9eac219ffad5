//! Erasing a person's traces in messaging: the contact, what messages say and where they went, and
//! the answers that replays repeat. That there were messages stays, and a replay still sends nothing.

use serde_json::Value;
use uuid::Uuid;

use super::contacts;
use super::deliver;
use super::inbound;
use super::messages::{self, News};
use super::status::{Status, Step};
use crate::database::Connection;
use crate::erasure::Person;
use crate::outbox;
use crate::resources::customers;

/// Rows looked at together.
const SLICE: i64 = 500;

/// The eraser of messaging. Does nothing while another record of the store has the same number.
///
/// # Errors
/// When the database fails.
pub async fn forget(connection: &mut Connection, person: &Person) -> sqlx::Result<()> {
    let Person {
        store_id, phone, ..
    } = person;
    if customers::has_phone(&mut *connection, *store_id, phone).await? {
        return Ok(());
    }
    // What nobody has looked at yet comes before the contact, as for whoever looks at it: else it
    // could make the contact anew behind our back.
    let user = contacts::provider_user_id(&mut *connection, *store_id, phone).await?;
    inbound::forget_person(connection, *store_id, phone, user.as_deref()).await?;
    // The lock of the contact: a send to this person waits, and finds no contact then.
    let Some(contact) = contacts::lock(&mut *connection, *store_id, phone).await? else {
        return Ok(());
    };
    let mut after = Uuid::nil();
    loop {
        let ids = message_ids(connection, *store_id, contact.id, after).await?;
        let Some(last) = ids.last() else { break };
        after = *last;
        cancel(connection, person, &ids).await?;
        redact_messages(connection, person, &ids).await?;
        redact_answers(connection, *store_id, &ids).await?;
    }
    contacts::delete(connection, *store_id, contact.id).await
}

async fn message_ids(
    connection: &mut Connection,
    store_id: i64,
    contact_id: Uuid,
    after: Uuid,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select id
        from messages
        where store_id = $1 and contact_id = $2 and id > $3
        order by id
        limit $4",
        store_id,
        contact_id,
        after,
        SLICE,
    )
    .fetch_all(connection)
    .await
}

/// Messages that have not been handed over never will be.
async fn cancel(connection: &mut Connection, person: &Person, ids: &[Uuid]) -> sqlx::Result<()> {
    let waiting = outbox::waiting(&mut *connection, person.store_id, ids).await?;
    let news: Vec<News> = waiting
        .iter()
        .map(|id| News {
            id: *id,
            event_id: person.clock.new_id(),
            steps: vec![Step::because(
                Status::Failed,
                person.now,
                deliver::RECIPIENT_ERASED,
                None,
            )],
            provider_message_id: None,
            requeue: false,
        })
        .collect();
    messages::apply(connection, person.store_id, &news, person.now).await?;
    outbox::remove_idle(connection, person.store_id, ids).await
}

async fn redact_messages(
    connection: &mut Connection,
    person: &Person,
    ids: &[Uuid],
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"update messages
        set recipient = null,
            content = null,
            provider_message_id = null,
            error_detail = null,
            timeline = (
                select jsonb_agg(step || '{"detail": null}' order by place)
                from jsonb_array_elements(timeline) with ordinality as steps (step, place)
            ),
            erased_at = $3
        where store_id = $1 and id = any($2)"#,
        person.store_id,
        ids,
        person.now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The answers that replays repeat: the same members, those that name the person null.
async fn redact_answers(
    connection: &mut Connection,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<()> {
    let answers = sqlx::query!(
        r#"select id, body as "body!"
        from idempotency_keys
        where store_id = $1 and message_id = any($2) and body is not null
        for update"#,
        store_id,
        ids,
    )
    .fetch_all(&mut *connection)
    .await?;
    let (mut keys, mut bodies) = (Vec::new(), Vec::new());
    for answer in answers {
        keys.push(answer.id);
        bodies.push(redacted(&answer.body));
    }
    sqlx::query!(
        "update idempotency_keys k
        set body = redacted.body
        from unnest($2::uuid[], $3::bytea[]) as redacted (id, body)
        where k.store_id = $1 and k.id = redacted.id",
        store_id,
        &keys,
        &bodies,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn redacted(body: &[u8]) -> Vec<u8> {
    let mut answer: Value = serde_json::from_slice(body).unwrap_or_default();
    for member in ["to", "contact_id"] {
        if let Some(value) = answer.get_mut(member) {
            *value = Value::Null;
        }
    }
    serde_json::to_vec(&answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_members_and_their_order() {
        let body = br#"{"message_id":"m","status":"queued","to":"+33612345678","contact_id":"c"}"#;
        let expected = r#"{"message_id":"m","status":"queued","to":null,"contact_id":null}"#;
        assert_eq!(String::from_utf8_lossy(&redacted(body)), expected);
    }
}
