//! The resources for those who know one only by its path: automations and exports, which act on
//! records of any of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use utoipa::PartialSchema as _;
use utoipa::ToSchema as _;
use uuid::Uuid;

use super::{Visitor, for_each};
use crate::database::Connection;
use crate::engine::record::Working;
use crate::engine::{Locks, PersonAt, Resource, read};

type Asked<'c, T> = Pin<Box<dyn Future<Output = sqlx::Result<T>> + Send + 'c>>;

/// A record as GET answers it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Which record.
    pub id: Uuid,
    /// Its version.
    pub version: i64,
    /// What names it in a path: its external id, or the phone of a customer without one.
    pub path_segment: String,
    /// Its external id, where that names no person.
    pub event_external_id: Option<String>,
    /// The body of the answer.
    pub body: String,
}

/// One resource.
pub struct Entry {
    /// Its segment in paths.
    pub path: &'static str,
    /// Its name for one.
    pub singular: &'static str,
    /// Whether its records are people.
    pub is_person: bool,
    /// Whether its records say something of a person.
    pub names_person: bool,
    /// Where a record says whom it is about.
    pub person: PersonAt,
    /// Schemas by name, and that of the answer.
    pub schema: (Value, Value),
    by_ids: for<'c> fn(&'c mut Connection, i64, &'c [Uuid]) -> Asked<'c, Vec<Snapshot>>,
    ids_after: for<'c> fn(&'c mut Connection, i64, Uuid, i64) -> Asked<'c, Vec<Uuid>>,
    count: for<'c> fn(&'c mut Connection, i64, i64) -> Asked<'c, i64>,
    find: for<'c> fn(&'c mut Connection, i64, &'c str) -> Asked<'c, Option<Uuid>>,
}

impl Entry {
    fn of<R: Resource>() -> Self {
        let mut schemas = Vec::new();
        R::Answer::schemas(&mut schemas);
        let named: serde_json::Map<String, Value> = schemas
            .into_iter()
            .map(|(name, schema)| (name, serde_json::to_value(schema).unwrap_or_default()))
            .collect();
        let answer = serde_json::to_value(R::Answer::schema()).unwrap_or_default();
        Self {
            path: R::PATH,
            singular: R::SINGULAR,
            is_person: R::IS_PERSON,
            names_person: R::IS_PERSON || R::HAS_CUSTOMER,
            person: R::PERSON,
            schema: (Value::Object(named), answer),
            by_ids: |connection, store_id, ids| Box::pin(by_ids::<R>(connection, store_id, ids)),
            ids_after: |connection, store_id, after, limit| {
                Box::pin(R::ids_after(connection, store_id, after, limit))
            },
            count: |connection, store_id, most| Box::pin(R::count(connection, store_id, most)),
            find: |connection, store_id, segment| {
                Box::pin(find::<R>(connection, store_id, segment))
            },
        }
    }

    /// The records with these ids that are there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn by_ids(
        &self,
        connection: &mut Connection,
        store_id: i64,
        ids: &[Uuid],
    ) -> sqlx::Result<Vec<Snapshot>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        (self.by_ids)(connection, store_id, ids).await
    }

    /// Ids of a store's records after one of them, in order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ids_after(
        &self,
        connection: &mut Connection,
        store_id: i64,
        after: Uuid,
        limit: i64,
    ) -> sqlx::Result<Vec<Uuid>> {
        (self.ids_after)(connection, store_id, after, limit).await
    }

    /// How many records a store has; no more than so many are counted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count(
        &self,
        connection: &mut Connection,
        store_id: i64,
        most: i64,
    ) -> sqlx::Result<i64> {
        (self.count)(connection, store_id, most).await
    }

    /// The id of the record that a segment of a path names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find(
        &self,
        connection: &mut Connection,
        store_id: i64,
        segment: &str,
    ) -> sqlx::Result<Option<Uuid>> {
        (self.find)(connection, store_id, segment).await
    }
}

/// All resources, in the order of the document.
pub static ALL: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    struct Entries(Vec<Entry>);
    impl Visitor for Entries {
        fn visit<R: Resource>(&mut self) {
            self.0.push(Entry::of::<R>());
        }
    }
    let mut entries = Entries(Vec::new());
    for_each(&mut entries);
    entries.0
});

/// The resource with this path.
#[must_use]
pub fn entry(path: &str) -> Option<&'static Entry> {
    ALL.iter().find(|entry| entry.path == path)
}

async fn by_ids<R: Resource>(
    connection: &mut Connection,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<Vec<Snapshot>> {
    let shown = read::by_ids::<R>(connection, store_id, ids).await?;
    shown
        .into_iter()
        .map(|(record, extra)| {
            let text = |name: Option<&str>| name.map(str::to_owned);
            let (id, version) = (record.id, record.version);
            let path_segment = text(R::path_segment(&record.content)).unwrap_or_default();
            let event_external_id = text(R::event_external_id(&record.content));
            let answer = R::answer(Arc::unwrap_or_clone(record), extra);
            let body = serde_json::to_string(&answer)
                .map_err(|error| sqlx::Error::Encode(error.into()))?;
            Ok(Snapshot {
                id,
                version,
                path_segment,
                event_external_id,
                body,
            })
        })
        .collect()
}

async fn find<R: Resource>(
    connection: &mut Connection,
    store_id: i64,
    segment: &str,
) -> sqlx::Result<Option<Uuid>> {
    let keys: Vec<(i64, R::Key)> = R::path_keys(segment)
        .into_iter()
        .map(|key| (store_id, key))
        .collect();
    if keys.is_empty() {
        return Ok(None);
    }
    let mut companions = R::Companions::default();
    let stored = R::load(connection, &keys, Locks::None, &mut companions).await?;
    let working = Working::<R>::over(&stored);
    let found = keys
        .iter()
        .find_map(|(store_id, key)| working.find(*store_id, key));
    Ok(found.map(|record| record.id))
}
