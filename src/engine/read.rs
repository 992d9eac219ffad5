//! Reading: one record, a page of them, and the cursor between pages.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hashbrown::HashMap;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::record::{Index, Record, RowWrite, StoreName, StoreNameRef, Working};
use super::{Locks, Resource, failure};
use crate::database::Connection;
use crate::error::Error;
use crate::state::State;
use crate::values::ExternalId;

/// The record that a path names, and what its answer shows besides.
///
/// # Errors
/// `NotFound`, or that the database fails.
pub async fn one<R: Resource>(
    state: &State,
    store_id: i64,
    segment: &str,
) -> Result<(Arc<Record<R::Content>>, R::Extra), Error> {
    let keys: Vec<(i64, R::Key)> = R::path_keys(segment)
        .into_iter()
        .map(|key| (store_id, key))
        .collect();
    if keys.is_empty() {
        return Err(Error::NotFound);
    }
    let mut connection = state.pool.acquire().await.map_err(failure::of_read)?;
    let mut companions = R::Companions::default();
    let stored = R::load(&mut connection, &keys, Locks::None, &mut companions)
        .await
        .map_err(failure::of_read)?;
    let working = Working::<R>::over(&stored);
    let found = keys
        .iter()
        .find_map(|(store_id, key)| working.find(*store_id, key));
    let record = Arc::clone(found.ok_or(Error::NotFound)?);
    let extras = R::extras(&mut connection, std::slice::from_ref(&record), &companions)
        .await
        .map_err(failure::of_read)?;
    let extra = extras.into_iter().next().ok_or(Error::NotFound)?;
    Ok((record, extra))
}

/// Which page of a list is wanted.
pub struct Wanted {
    /// Whose records.
    pub store_id: i64,
    /// After which record; nil for the first page.
    pub after: Uuid,
    /// Up to which record: the greatest of all ids, unless one is asked for.
    pub through: Uuid,
    /// At most so many.
    pub limit: u32,
    /// Of the customer with this id alone.
    pub customer_id: Option<Uuid>,
}

impl Wanted {
    /// The same, narrowed to the record with this id: a look-up by the key that pages are read by,
    /// however many records there are.
    #[must_use]
    pub fn only(self, id: Uuid) -> Self {
        let before = Uuid::from_u128(id.as_u128().saturating_sub(1));
        Self {
            after: self.after.max(before),
            through: id,
            limit: 1,
            ..self
        }
    }
}

/// A record, with what its answer shows besides.
pub type Shown<R> = (
    Arc<Record<<R as Resource>::Content>>,
    <R as Resource>::Extra,
);

/// Records in order of creation, and the id after which the next page begins.
pub struct Page<R: Resource> {
    /// The records.
    pub records: Vec<Shown<R>>,
    /// None at the end.
    pub next_after: Option<Uuid>,
}

/// A page of a list.
///
/// # Errors
/// When the database fails.
pub async fn page<R: Resource>(state: &State, wanted: &Wanted) -> Result<Page<R>, Error> {
    let mut connection = state.pool.acquire().await.map_err(failure::of_read)?;
    let limit = i64::from(wanted.limit);
    let mut companions = R::Companions::default();
    let mut records = R::page(&mut connection, wanted, limit + 1, &mut companions)
        .await
        .map_err(failure::of_read)?;
    let has_more = records.len() > wanted.limit as usize;
    records.truncate(wanted.limit as usize);
    let extras = R::extras(&mut connection, &records, &companions)
        .await
        .map_err(failure::of_read)?;
    let next_after = records.last().filter(|_| has_more).map(|record| record.id);
    Ok(Page {
        records: records.into_iter().zip(extras).collect(),
        next_after,
    })
}

/// The records with these ids that are there, and what their answers show besides.
///
/// # Errors
/// When the database fails.
pub async fn by_ids<R: Resource>(
    connection: &mut Connection,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<Vec<Shown<R>>> {
    let keys = R::keys_of(connection, store_id, ids).await?;
    let keys: Vec<(i64, R::Key)> = keys.into_iter().map(|key| (store_id, key)).collect();
    let mut companions = R::Companions::default();
    let mut records = R::load(connection, &keys, Locks::None, &mut companions).await?;
    // A key may have come to mean another record since.
    records.retain(|record| ids.contains(&record.id) && R::path_segment(&record.content).is_some());
    let extras = R::extras(connection, &records, &companions).await?;
    Ok(records.into_iter().zip(extras).collect())
}

/// How the records of a table are found by their ids, where an external id names each: the parts of
/// `Resource` that say so.
macro_rules! found_by_id {
    ($table:literal) => {
        async fn keys_of(
            connection: &mut Connection,
            store_id: i64,
            ids: &[Uuid],
        ) -> sqlx::Result<Vec<ExternalId>> {
            let keys = sqlx::query_scalar!(
                "select external_id from " + $table + " where store_id = $1 and id = any($2)",
                store_id,
                ids,
            );
            let keys = keys.fetch_all(connection).await?;
            Ok(keys.into_iter().map(ExternalId::from_stored).collect())
        }

        async fn ids_after(
            connection: &mut Connection,
            store_id: i64,
            after: Uuid,
            limit: i64,
        ) -> sqlx::Result<Vec<Uuid>> {
            let ids = sqlx::query_scalar!(
                "select id from "
                    + $table
                    + " where store_id = $1 and id > $2 order by id limit $3",
                store_id,
                after,
                limit,
            );
            ids.fetch_all(connection).await
        }

        async fn count(connection: &mut Connection, store_id: i64, most: i64) -> sqlx::Result<i64> {
            let count = sqlx::query_scalar!(
                r#"select count(*) as "count!" from (select from "#
                    + $table
                    + " where store_id = $1 limit $2) counted",
                store_id,
                most,
            );
            count.fetch_one(connection).await
        }
    };
}
pub(crate) use found_by_id;

/// Bytes of the checksum in a cursor: against accidents and mix-ups, not against forgers, who would
/// gain nothing.
const CHECKSUM_BYTES: usize = 8;

/// The list that a cursor belongs to.
#[derive(Clone, Copy)]
pub struct List<'a> {
    /// Whose records.
    pub store_id: i64,
    /// Which resource.
    pub path: &'a str,
    /// The filters as they were sent.
    pub filters: &'a str,
}

impl List<'_> {
    /// The cursor that goes on after this record.
    #[must_use]
    pub fn cursor(&self, after: Uuid) -> String {
        let mut bytes = after.as_bytes().to_vec();
        bytes.extend(self.checksum(after));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The record after which a cursor goes on.
    ///
    /// # Errors
    /// `CursorInvalid` for one that was altered or belongs to another list.
    pub fn after(&self, cursor: &str) -> Result<Uuid, Error> {
        let bytes = URL_SAFE_NO_PAD
            .decode(cursor)
            .map_err(|_| Error::CursorInvalid)?;
        let (id, checksum) = bytes.split_at_checked(16).ok_or(Error::CursorInvalid)?;
        let after = Uuid::from_slice(id).map_err(|_| Error::CursorInvalid)?;
        if checksum != self.checksum(after) {
            return Err(Error::CursorInvalid);
        }
        Ok(after)
    }

    fn checksum(&self, after: Uuid) -> [u8; CHECKSUM_BYTES] {
        let mut hash = Sha256::new();
        hash.update(b"keyfold cursor 1\0");
        hash.update(self.store_id.to_be_bytes());
        hash.update(self.path.as_bytes());
        hash.update([0]);
        hash.update(self.filters.as_bytes());
        hash.update(after.as_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut checksum = [0; CHECKSUM_BYTES];
        checksum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
        checksum
    }
}

/// The index of resources that are named by their external id alone.
pub struct ByExternalId<R> {
    ids: HashMap<StoreName, Uuid>,
    resource: PhantomData<fn() -> R>,
}

impl<R> Default for ByExternalId<R> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            resource: PhantomData,
        }
    }
}

impl<R> Index<R> for ByExternalId<R>
where
    R: Resource<Key = ExternalId>,
{
    fn find(&self, store_id: i64, key: &R::Key) -> Option<Uuid> {
        self.ids.get(&StoreNameRef(store_id, key.as_str())).copied()
    }

    fn put(&mut self, former: Option<&Record<R::Content>>, record: &Record<R::Content>) {
        // Nobody can change this name, so a record that is known stands under it already.
        if former.is_none()
            && let Some(external_id) = R::external_id(&record.content)
        {
            let name = StoreName(record.store_id, external_id.into());
            self.ids.insert(name, record.id);
        }
    }
}

/// Keys as columns for a look-up: each once and sorted, so that neighbours in an index are read
/// together, and locked in everybody's order.
#[must_use]
pub fn key_columns(keys: &[(i64, ExternalId)]) -> (Vec<i64>, Vec<&str>) {
    let keys: BTreeSet<(i64, &str)> = keys
        .iter()
        .map(|(store_id, key)| (*store_id, key.as_str()))
        .collect();
    keys.into_iter().unzip()
}

/// Rows by store and external id.
#[must_use]
pub fn by_external_id<R: Resource>(
    a: &RowWrite<R::Content>,
    b: &RowWrite<R::Content>,
) -> std::cmp::Ordering {
    let key = |row: &RowWrite<R::Content>| row.record.store_id;
    key(a)
        .cmp(&key(b))
        .then_with(|| R::external_id(&a.record.content).cmp(&R::external_id(&b.record.content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_its_list_and_can_not_be_altered() {
        let list = List {
            store_id: 1,
            path: "orders",
            filters: "",
        };
        let id = Uuid::from_u128(42);
        let cursor = list.cursor(id);
        assert_eq!(list.after(&cursor).ok(), Some(id));
        for other in [
            List {
                store_id: 2,
                ..list
            },
            List {
                path: "checkouts",
                ..list
            },
            List {
                filters: "customer_external_id=1",
                ..list
            },
        ] {
            assert!(matches!(other.after(&cursor), Err(Error::CursorInvalid)));
        }
        for at in 0..cursor.len() {
            let mut altered = cursor.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).expect("ASCII");
            assert!(list.after(&altered).is_err(), "{altered}");
        }
        for broken in ["", "é", "AAAA", &cursor[1..]] {
            assert!(list.after(broken).is_err(), "{broken}");
        }
    }
}
