//! DELETE of a customer: everything that names the person goes, in one transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State as Shared};
use http::StatusCode;
use uuid::Uuid;

use super::identity::{self, Identity};
use super::{Content, Customer};
use crate::auth::StoreAccess;
use crate::database::Connection;
use crate::engine::events::{self, Event};
use crate::engine::failure::Failure;
use crate::engine::http::{Query, Service, last_segment};
use crate::engine::record::{Record, Working};
use crate::engine::transaction::Transaction;
use crate::engine::{Locks, Resource};
use crate::erasure::{self, Eraser, Person};
use crate::error::Error;
use crate::state::State;
use crate::values::Phone;

/// Attempts lost to writers who changed the record in between.
const MOST_ATTEMPTS: u32 = 20;

/// `DELETE …/customers/{key}`: 204, also for an unknown or already erased one.
///
/// # Errors
/// A path that can't be decoded, or that the database fails.
pub async fn delete(
    Shared(service): Shared<Service>,
    Extension(store): Extension<StoreAccess>,
    request: Request,
) -> Result<StatusCode, Error> {
    let segment = last_segment(request.uri().path())?;
    Query::read(request.uri().query(), &[])?;
    let keys: Vec<(i64, Identity)> = Customer::path_keys(&segment)
        .into_iter()
        .map(|key| (store.store_id, key))
        .collect();
    if !keys.is_empty() {
        let erasers = Arc::clone(&service.erasers);
        service
            .run(store.holder(), |state: State| async move {
                erase(&state, &keys, &erasers).await
            })
            .await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn erase(state: &State, keys: &[(i64, Identity)], erasers: &[Eraser]) -> Result<(), Error> {
    for _ in 0..MOST_ATTEMPTS {
        match attempt(state, keys, erasers).await {
            Err(Failure::Conflict) => {}
            Err(failure) => return Err(failure.into_error()),
            Ok(()) => return Ok(()),
        }
    }
    Err(Error::Overloaded)
}

async fn attempt(
    state: &State,
    keys: &[(i64, Identity)],
    erasers: &[Eraser],
) -> Result<(), Failure> {
    let mut transaction = Transaction::begin(&state.pool).await?;
    match in_transaction(state, transaction.connection(), keys, erasers).await {
        Ok(Erased::Now) => transaction.commit().await.map_err(Failure::of_commit),
        Ok(Erased::Nobody) => {
            transaction.rollback().await;
            Ok(())
        }
        Err(failure) => {
            transaction.rollback().await;
            Err(failure)
        }
    }
}

enum Erased {
    Now,
    Nobody,
}

/// Locks the phone and the record in the order of everybody, looks again, then erases.
async fn in_transaction(
    state: &State,
    connection: &mut Connection,
    keys: &[(i64, Identity)],
    erasers: &[Eraser],
) -> Result<Erased, Failure> {
    let Some(seen) = find(connection, keys).await? else {
        return without_record(state, connection, keys, erasers).await;
    };
    let Some(phone) = seen.content.phone.as_ref().map(Phone::as_str) else {
        return Ok(Erased::Nobody);
    };
    let store_id = seen.store_id;
    identity::lock_phones(connection, &BTreeSet::from([(store_id, phone)])).await?;
    identity::lock_records(connection, &BTreeSet::from([(store_id, seen.id)])).await?;
    let found = find(connection, keys).await?;
    if found.is_none_or(|found| found.id != seen.id || found.version != seen.version) {
        return Err(Failure::Conflict);
    }
    let person = person(state, store_id, Some(seen.id), phone);
    erasure::run(connection, &person, erasers).await?;
    Ok(Erased::Now)
}

/// Somebody without a record may still have got messages: they are named by their phone.
async fn without_record(
    state: &State,
    connection: &mut Connection,
    keys: &[(i64, Identity)],
    erasers: &[Eraser],
) -> Result<Erased, Failure> {
    let phone = keys.iter().find_map(|(store_id, key)| match key {
        Identity::Alone(phone) => Some((*store_id, phone.as_str())),
        _ => None,
    });
    let Some((store_id, phone)) = phone else {
        return Ok(Erased::Nobody);
    };
    identity::lock_phones(connection, &BTreeSet::from([(store_id, phone)])).await?;
    if find(connection, keys).await?.is_some() {
        return Err(Failure::Conflict);
    }
    let person = person(state, store_id, None, phone);
    erasure::run(connection, &person, erasers).await?;
    Ok(Erased::Now)
}

fn person(state: &State, store_id: i64, customer_id: Option<Uuid>, phone: &str) -> Person {
    Person {
        store_id,
        customer_id,
        phone: phone.to_owned(),
        event_id: state.clock.new_id(),
        now: state.clock.now(),
        clock: state.clock.clone(),
    }
}

async fn find(
    connection: &mut Connection,
    keys: &[(i64, Identity)],
) -> sqlx::Result<Option<Arc<Record<Content>>>> {
    let stored = identity::load(connection, keys, Locks::None).await?;
    let working = Working::<Customer>::over(&stored);
    Ok(keys
        .iter()
        .find_map(|(store_id, key)| working.find(*store_id, key))
        .cloned())
}

/// The customers' own eraser: leaves a tombstone of store and id, and tells of it.
///
/// # Errors
/// When the database fails.
pub async fn forget(connection: &mut Connection, person: &Person) -> sqlx::Result<()> {
    let Some(customer_id) = person.customer_id else {
        return Ok(());
    };
    let tombstone = sqlx::query!(
        "update customers
        set external_id = null,
            phone = null,
            first_name = null,
            last_name = null,
            email = null,
            locale = null,
            tags = '[]',
            lifetime_value = null,
            orders_count = null,
            metadata = '{}',
            source_updated_at = null,
            replaced_version = version,
            version = version + 1,
            updated_at = greatest($3, updated_at + interval '1 microsecond'),
            erased_at = $3
        where store_id = $1 and id = $2 and erased_at is null
        returning version, updated_at",
        person.store_id,
        customer_id,
        person.now,
    )
    .fetch_one(&mut *connection)
    .await?;
    let event = Event {
        store_id: person.store_id,
        id: person.event_id,
        kind: format!("{}.erased", Customer::SINGULAR),
        resource: Customer::PATH,
        record_id: customer_id,
        external_id: None,
        version: tombstone.version,
        created_at: tombstone.updated_at,
    };
    events::append(connection, &[&event]).await
}
