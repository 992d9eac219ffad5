//! A record as it is now, and the person whom it is about.

use uuid::Uuid;

use super::sources::text_at;
use crate::database::Connection;
use crate::engine::PersonAt;
use crate::resources::catalog;
use crate::values::{Node, Value, parse};

/// A record and its person.
pub struct About {
    /// The record as GET answers it.
    pub body: String,
    /// None: who it is stands in a record that has not arrived.
    pub person: Option<Person>,
}

/// Whom a record is about.
pub struct Person {
    /// The customer.
    pub customer_id: Option<Uuid>,
    /// Their number; none once they have been erased.
    pub phone: Option<String>,
}

/// Looks at a record; none: it is not there, or erased.
///
/// # Errors
/// When the database fails.
pub async fn look(
    connection: &mut Connection,
    store_id: i64,
    resource: &str,
    id: Uuid,
) -> sqlx::Result<Option<About>> {
    let Some(entry) = catalog::entry(resource) else {
        return Ok(None);
    };
    let found = entry.by_ids(connection, store_id, &[id]).await?;
    let Some(snapshot) = found.into_iter().next() else {
        return Ok(None);
    };
    let person = match named_in(entry.person, &snapshot.body) {
        Named::Person(person) => Some(person),
        Named::Elsewhere { resource, segment } => {
            elsewhere(connection, store_id, resource, &segment).await?
        }
    };
    Ok(Some(About {
        body: snapshot.body,
        person,
    }))
}

/// Whom a body names.
enum Named {
    Person(Person),
    Elsewhere {
        resource: &'static str,
        segment: String,
    },
}

fn named_in(at: PersonAt, body: &str) -> Named {
    // What we have answered ourselves is JSON.
    let record = parse(body.as_bytes()).ok();
    match at {
        PersonAt::Here { id, phone } => {
            let text = |pointer| record.as_ref().and_then(|record| text_at(record, pointer));
            Named::Person(Person {
                customer_id: text(id).and_then(|id| id.parse().ok()),
                phone: text(phone).map(str::to_owned),
            })
        }
        PersonAt::Elsewhere { resource, member } => Named::Elsewhere {
            resource,
            segment: record
                .as_ref()
                .and_then(|record| member_of(record, member))
                .unwrap_or_default(),
        },
    }
}

fn member_of(record: &Node<'_>, name: &str) -> Option<String> {
    match &record.member(name)?.value {
        Value::String(text) => Some(text.clone().into_owned()),
        _ => None,
    }
}

/// Whom another record is about; none: it has not arrived.
async fn elsewhere(
    connection: &mut Connection,
    store_id: i64,
    resource: &str,
    segment: &str,
) -> sqlx::Result<Option<Person>> {
    let Some(entry) = catalog::entry(resource) else {
        return Ok(None);
    };
    let Some(id) = entry.find(connection, store_id, segment).await? else {
        return Ok(None);
    };
    let found = entry.by_ids(connection, store_id, &[id]).await?;
    let named = found
        .first()
        .map(|snapshot| named_in(entry.person, &snapshot.body));
    Ok(match named {
        Some(Named::Person(person)) => Some(person),
        Some(Named::Elsewhere { .. }) | None => None,
    })
}
