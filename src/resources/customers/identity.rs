//! Who is this customer? The four rules of identity, and the locks that hold them.
//!
//! 1. With an external id: the record with it. If there is none, but a record *without* external id
//!    has this phone, that one adopts the external id. Otherwise a new one.
//! 2. Without: the record with this phone and no external id; else the oldest record with this
//!    phone; else a new one.
//! 3. Two external ids may share a phone.
//! 4. Any mix of concurrent writes leaves what some order of them would leave.
//!
//! The two unique indexes alone can't hold rule 4: `{phone, external_id}` and `{phone}` at once left
//! two records. So whoever would make a record, or let one adopt an external id, first locks the
//! phone's row in `customer_phones`, and reads again.
//!
//! ```text
//!  A: {phone}                       B: {phone, external_id}
//!  read: nobody                     read: nobody
//!  lock phone                       lock phone … waits
//!  read again: nobody
//!  insert, commit                   … read again: A's record
//!                                   adopt the external id, commit
//! ```
//!
//! A change that neither makes nor adopts needs no such lock: the version check finds a race, and
//! any order of the two gives the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use hashbrown::{HashMap, HashSet};
use sqlx::types::Json;
use uuid::Uuid;

use super::{Content, Customer};
use crate::database::Connection;
use crate::engine::Locks;
use crate::engine::group_commit::LaneKey;
use crate::engine::place::Place;
use crate::engine::record::{Index, Record, StoreName, StoreNameRef};
use crate::values::{ExternalId, FreeJson, Phone, Tags};

/// What names a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Rule 1.
    Named(ExternalId, Phone),
    /// Rule 2.
    Phone(Phone),
    /// Only the record with this external id: from a path.
    ExternalId(ExternalId),
    /// Only the record with this phone and no external id: from a path.
    Alone(Phone),
    /// A record that is known already.
    Id(Uuid),
}

impl Identity {
    /// The names that no two batches write at once.
    #[must_use]
    pub fn lane_keys(&self, store_id: i64) -> Vec<LaneKey> {
        let named = self.external_id().map(|id| ("external_id", id));
        let called = self.phone().map(|phone| ("phone", phone));
        let names = named.into_iter().chain(called);
        names
            .map(|(kind, name)| LaneKey::of(store_id, kind, name))
            .collect()
    }

    fn external_id(&self) -> Option<&str> {
        match self {
            Self::Named(external_id, _) | Self::ExternalId(external_id) => {
                Some(external_id.as_str())
            }
            Self::Phone(_) | Self::Alone(_) | Self::Id(_) => None,
        }
    }

    fn phone(&self) -> Option<&str> {
        match self {
            Self::Named(_, phone) | Self::Phone(phone) | Self::Alone(phone) => Some(phone.as_str()),
            Self::ExternalId(_) | Self::Id(_) => None,
        }
    }
}

/// Customers in memory, by what names them. Erased ones are named by nothing but their id.
#[derive(Default)]
pub struct Directory {
    by_external_id: HashMap<StoreName, Uuid>,
    /// Records with this phone, oldest first, and whether they have an external id.
    by_phone: HashMap<StoreName, BTreeMap<Uuid, bool>>,
    ids: HashSet<Uuid>,
}

impl Directory {
    fn with_phone(&self, store_id: i64, phone: &str) -> impl Iterator<Item = (&Uuid, &bool)> {
        self.by_phone
            .get(&StoreNameRef(store_id, phone))
            .into_iter()
            .flatten()
    }

    fn alone(&self, store_id: i64, phone: &str) -> Option<Uuid> {
        self.with_phone(store_id, phone)
            .find(|(_, named)| !**named)
            .map(|(id, _)| *id)
    }
}

impl Index<Customer> for Directory {
    fn find(&self, store_id: i64, key: &Identity) -> Option<Uuid> {
        let named = |id: &ExternalId| {
            let name = StoreNameRef(store_id, id.as_str());
            self.by_external_id.get(&name).copied()
        };
        match key {
            Identity::Named(id, phone) => {
                named(id).or_else(|| self.alone(store_id, phone.as_str()))
            }
            Identity::Phone(phone) => self.alone(store_id, phone.as_str()).or_else(|| {
                self.with_phone(store_id, phone.as_str())
                    .next()
                    .map(|(id, _)| *id)
            }),
            Identity::ExternalId(id) => named(id),
            Identity::Alone(phone) => self.alone(store_id, phone.as_str()),
            Identity::Id(id) => self.ids.get(id).copied(),
        }
    }

    fn put(&mut self, former: Option<&Record<Content>>, record: &Record<Content>) {
        let store_id = record.store_id;
        let content = &record.content;
        if let Some(former) = former.map(|record| &record.content) {
            if former.external_id == content.external_id && former.phone == content.phone {
                return;
            }
            if let Some(id) = &former.external_id {
                let name = StoreNameRef(store_id, id.as_str());
                self.by_external_id.remove(&name);
            }
            if let Some(phone) = &former.phone {
                let name = StoreNameRef(store_id, phone.as_str());
                if let Some(ids) = self.by_phone.get_mut(&name) {
                    ids.remove(&record.id);
                }
            }
        }
        self.ids.insert(record.id);
        if let Some(id) = &content.external_id {
            let name = StoreName(store_id, id.as_str().into());
            self.by_external_id.insert(name, record.id);
        }
        if let Some(phone) = &content.phone {
            let name = StoreName(store_id, phone.as_str().into());
            let ids = self.by_phone.entry(name).or_default();
            ids.insert(record.id, content.external_id.is_some());
        }
    }
}

/// The stored records that these keys may mean, after taking the locks that are asked for: phones
/// first, then records, each sorted.
///
/// # Errors
/// When the database fails.
pub async fn load(
    connection: &mut Connection,
    keys: &[(i64, Identity)],
    locks: Locks<'_>,
) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
    let phones: BTreeSet<(i64, &str)> = match locks {
        Locks::None => BTreeSet::new(),
        Locks::Fresh(places) => places
            .iter()
            .filter_map(|at| phone_of(keys.get(*at)?))
            .collect(),
        Locks::All => keys.iter().filter_map(phone_of).collect(),
    };
    lock_phones(connection, &phones).await?;
    if matches!(locks, Locks::All) {
        let candidates = select(connection, keys).await?;
        let ids: BTreeSet<(i64, Uuid)> = candidates
            .iter()
            .map(|record| (record.store_id, record.id))
            .collect();
        lock_records(connection, &ids).await?;
    }
    select(connection, keys).await
}

fn phone_of((store_id, key): &(i64, Identity)) -> Option<(i64, &str)> {
    Some((*store_id, key.phone()?))
}

/// Locks phones until the end of the transaction: by rows that exist only inside it. Whoever inserts
/// the same phone waits for us; nobody ever sees the row, so no phone outlives its person here.
///
/// # Errors
/// When the database fails.
pub async fn lock_phones(
    connection: &mut Connection,
    phones: &BTreeSet<(i64, &str)>,
) -> sqlx::Result<()> {
    if phones.is_empty() {
        return Ok(());
    }
    let (store_ids, phones): (Vec<i64>, Vec<&str>) = phones.iter().copied().unzip();
    sqlx::query!(
        "insert into customer_phones (store_id, phone)
        select *
        from unnest($1::bigint[], $2::text[])
        on conflict (store_id, phone) do nothing",
        &store_ids,
        &phones as &[&str],
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "delete from customer_phones p
        using unnest($1::bigint[], $2::text[]) as locked (store_id, phone)
        where p.store_id = locked.store_id and p.phone = locked.phone",
        &store_ids,
        &phones as &[&str],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks customers' rows, as strongly as the upsert of one does: it sets `external_id`, which is
/// part of a key.
///
/// # Errors
/// When the database fails.
pub async fn lock_records(
    connection: &mut Connection,
    ids: &BTreeSet<(i64, Uuid)>,
) -> sqlx::Result<()> {
    let (store_ids, ids): (Vec<i64>, Vec<Uuid>) = ids.iter().copied().unzip();
    sqlx::query!(
        "select c.id
        from unnest($1::bigint[], $2::uuid[]) as wanted (store_id, id)
        join customers c on c.store_id = wanted.store_id and c.id = wanted.id
        order by c.store_id, c.id
        for update of c",
        &store_ids,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Keeps customers that are referred to, but not changed, from being erased before this transaction
/// ends; tells how many of them are still there. Whoever only refers to the same ones passes.
///
/// # Errors
/// When the database fails.
pub async fn hold(connection: &mut Connection, ids: &BTreeSet<(i64, Uuid)>) -> sqlx::Result<usize> {
    let (store_ids, ids): (Vec<i64>, Vec<Uuid>) = ids.iter().copied().unzip();
    let held = sqlx::query!(
        "select c.id
        from unnest($1::bigint[], $2::uuid[]) as wanted (store_id, id)
        join customers c on c.store_id = wanted.store_id and c.id = wanted.id
        where c.erased_at is null
        order by c.store_id, c.id
        for key share of c",
        &store_ids,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(held.len())
}

/// A row as the statements below give it.
pub(in crate::resources) struct Row {
    pub store_id: i64,
    pub id: Uuid,
    pub external_id: Option<String>,
    pub phone: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub email: Option<String>,
    pub locale: Option<String>,
    pub tags: Json<Vec<String>>,
    pub lifetime_value: Option<i64>,
    pub orders_count: Option<i64>,
    pub metadata: String,
    pub version: i64,
    pub source_updated_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub erased_at: Option<DateTime<Utc>>,
    pub place: Place,
}

impl From<Row> for Record<Content> {
    fn from(row: Row) -> Self {
        Self {
            store_id: row.store_id,
            id: row.id,
            version: row.version,
            source_updated_at: row.source_updated_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
            place: Some(row.place),
            content: Content {
                external_id: row.external_id.map(ExternalId::from_stored),
                phone: row.phone.map(Phone::from_stored),
                first_name: row.first_name,
                last_name: row.last_name,
                email: row.email,
                locale: row.locale,
                tags: Tags::from_stored(row.tags.0),
                lifetime_value: row.lifetime_value,
                orders_count: row.orders_count,
                metadata: FreeJson::from_stored(row.metadata),
                erased: row.erased_at.is_some(),
            },
        }
    }
}

/// The records that keys may mean. By phone only those are looked up whose external id names none:
/// nothing else of a [`Identity::Named`] counts once its record is there.
async fn select(
    connection: &mut Connection,
    keys: &[(i64, Identity)],
) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
    let ids: BTreeSet<(i64, Uuid)> = keys
        .iter()
        .filter_map(|(store_id, key)| match key {
            Identity::Id(id) => Some((*store_id, *id)),
            _ => None,
        })
        .collect();
    let external_ids: BTreeSet<(i64, &str)> = keys
        .iter()
        .filter_map(|(store_id, key)| Some((*store_id, key.external_id()?)))
        .collect();
    let mut found = Found::default();
    if !ids.is_empty() {
        found.add(by_id(connection, &ids).await?);
    }
    if !external_ids.is_empty() {
        found.add(by_external_id(connection, &external_ids).await?);
    }
    let unnamed = keys
        .iter()
        .filter(|(store_id, key)| !found.names(*store_id, key.external_id()));
    let phones: BTreeSet<(i64, &str)> = unnamed.filter_map(phone_of).collect();
    if !phones.is_empty() {
        found.add(alone_by_phone(connection, &phones).await?);
    }
    let any = keys
        .iter()
        .filter(|(_, key)| matches!(key, Identity::Phone(_)));
    let phones: BTreeMap<(i64, &str), i64> = any
        .filter_map(phone_of)
        .filter(|(store_id, phone)| !found.is_alone(*store_id, phone))
        .map(|(store_id, phone)| ((store_id, phone), found.known_by(store_id, phone) + 1))
        .collect();
    if !phones.is_empty() {
        found.add(oldest_by_phone(connection, &phones).await?);
    }
    Ok(found.records.into_values().collect())
}

/// What several look-ups found, each record once.
#[derive(Default)]
struct Found {
    records: HashMap<Uuid, Arc<Record<Content>>>,
    external_ids: HashSet<StoreName>,
    /// Phones of records without external id.
    alone: HashSet<StoreName>,
    /// How many records have a phone.
    phones: HashMap<StoreName, i64>,
}

impl Found {
    fn add(&mut self, rows: Vec<Row>) {
        for row in rows {
            match (&row.external_id, &row.phone) {
                (Some(external_id), _) => {
                    let name = StoreName(row.store_id, external_id.as_str().into());
                    self.external_ids.insert(name);
                }
                (None, Some(phone)) => {
                    let name = StoreName(row.store_id, phone.as_str().into());
                    self.alone.insert(name);
                }
                (None, None) => {}
            }
            if let Some(phone) = row.phone.as_deref()
                && !self.records.contains_key(&row.id)
            {
                let name = StoreName(row.store_id, phone.into());
                *self.phones.entry(name).or_default() += 1;
            }
            self.records.insert(row.id, Arc::new(row.into()));
        }
    }

    /// Whether a record with this phone and no external id was found.
    fn is_alone(&self, store_id: i64, phone: &str) -> bool {
        self.alone.contains(&StoreNameRef(store_id, phone))
    }

    /// How many records with this phone were found by other names.
    fn known_by(&self, store_id: i64, phone: &str) -> i64 {
        let name = StoreNameRef(store_id, phone);
        self.phones.get(&name).copied().unwrap_or(0)
    }

    /// Whether a record with this external id was found.
    fn names(&self, store_id: i64, external_id: Option<&str>) -> bool {
        external_id.is_some_and(|id| self.external_ids.contains(&StoreNameRef(store_id, id)))
    }
}

async fn by_id(connection: &mut Connection, ids: &BTreeSet<(i64, Uuid)>) -> sqlx::Result<Vec<Row>> {
    let (store_ids, ids): (Vec<i64>, Vec<Uuid>) = ids.iter().copied().unzip();
    sqlx::query_as!(
        Row,
        r#"select
            c.store_id, c.id, c.external_id, c.phone, c.first_name, c.last_name, c.email, c.locale,
            c.tags as "tags: Json<Vec<String>>", c.lifetime_value, c.orders_count,
            c.metadata::text as "metadata!", c.version, c.source_updated_at, c.created_at,
            c.updated_at, c.erased_at, c.ctid as "place!: Place"
        from unnest($1::bigint[], $2::uuid[]) as wanted (store_id, id)
        join customers c on c.store_id = wanted.store_id and c.id = wanted.id"#,
        &store_ids,
        &ids,
    )
    .fetch_all(connection)
    .await
}

async fn by_external_id(
    connection: &mut Connection,
    external_ids: &BTreeSet<(i64, &str)>,
) -> sqlx::Result<Vec<Row>> {
    let (store_ids, external_ids): (Vec<i64>, Vec<&str>) = external_ids.iter().copied().unzip();
    sqlx::query_as!(
        Row,
        r#"select
            c.store_id, c.id, c.external_id, c.phone, c.first_name, c.last_name, c.email, c.locale,
            c.tags as "tags: Json<Vec<String>>", c.lifetime_value, c.orders_count,
            c.metadata::text as "metadata!", c.version, c.source_updated_at, c.created_at,
            c.updated_at, c.erased_at, c.ctid as "place!: Place"
        from unnest($1::bigint[], $2::text[]) as named (store_id, external_id)
        join customers c on c.store_id = named.store_id and c.external_id = named.external_id"#,
        &store_ids,
        &external_ids as &[&str],
    )
    .fetch_all(connection)
    .await
}

/// The records with these phones and no external id: at most one a phone.
async fn alone_by_phone(
    connection: &mut Connection,
    phones: &BTreeSet<(i64, &str)>,
) -> sqlx::Result<Vec<Row>> {
    let (store_ids, phones): (Vec<i64>, Vec<&str>) = phones.iter().copied().unzip();
    sqlx::query_as!(
        Row,
        r#"select
            c.store_id, c.id, c.external_id, c.phone, c.first_name, c.last_name, c.email, c.locale,
            c.tags as "tags: Json<Vec<String>>", c.lifetime_value, c.orders_count,
            c.metadata::text as "metadata!", c.version, c.source_updated_at, c.created_at,
            c.updated_at, c.erased_at, c.ctid as "place!: Place"
        from unnest($1::bigint[], $2::text[]) as called (store_id, phone)
        join customers c on c.store_id = called.store_id and c.phone = called.phone
        where c.external_id is null"#,
        &store_ids,
        &phones as &[&str],
    )
    .fetch_all(connection)
    .await
}

/// Of records that share a phone only the oldest are read: one, and as many more as the batch could
/// move away from that phone, which are those that it knows by another name. So a look reads no more
/// records than its batch has keys, twice, however many share a phone (as where a till gives every
/// customer its own number).
async fn oldest_by_phone(
    connection: &mut Connection,
    phones: &BTreeMap<(i64, &str), i64>,
) -> sqlx::Result<Vec<Row>> {
    let store_ids: Vec<i64> = phones.keys().map(|(store_id, _)| *store_id).collect();
    let most: Vec<i64> = phones.values().copied().collect();
    let phones: Vec<&str> = phones.keys().map(|(_, phone)| *phone).collect();
    sqlx::query_as!(
        Row,
        r#"select
            c.store_id, c.id, c.external_id, c.phone, c.first_name, c.last_name, c.email, c.locale,
            c.tags as "tags: Json<Vec<String>>", c.lifetime_value, c.orders_count,
            c.metadata::text as "metadata!", c.version, c.source_updated_at, c.created_at,
            c.updated_at, c.erased_at, c.ctid as "place!: Place"
        from unnest($1::bigint[], $2::text[], $3::bigint[]) as called (store_id, phone, most)
        cross join lateral (
            select o.id
            from customers o
            where o.store_id = called.store_id and o.phone = called.phone
            order by o.id
            limit called.most
        ) oldest
        join customers c on c.store_id = called.store_id and c.id = oldest.id"#,
        &store_ids,
        &phones as &[&str],
        &most,
    )
    .fetch_all(connection)
    .await
}
