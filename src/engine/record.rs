//! Records in memory: what is stored, and a batch's working set of them.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use hashbrown::{Equivalent, HashMap};
use uuid::Uuid;

use super::Resource;
use super::events::Event;

/// A record: what the engine knows of every resource, and the resource's own content.
#[derive(Clone, Debug)]
pub struct Record<C> {
    /// Whose it is.
    pub store_id: i64,
    /// UUIDv7, made when the record was first written.
    pub id: Uuid,
    /// 1 for the first content, one more with each change.
    pub version: i64,
    /// When the caller's own system last changed it; never goes back.
    pub source_updated_at: Option<DateTime<Utc>>,
    /// When it was first written.
    pub created_at: DateTime<Utc>,
    /// When its content last changed; grows with every version, whatever the clocks do.
    pub updated_at: DateTime<Utc>,
    /// What callers write.
    pub content: C,
}

impl<C> Record<C> {
    /// The next version of this record.
    #[must_use]
    pub fn changed(&self, content: C, source: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Self {
        Self {
            version: self.version + 1,
            source_updated_at: source.max(self.source_updated_at),
            updated_at: now.max(self.updated_at + TimeDelta::microseconds(1)),
            content,
            ..*self
        }
    }
}

/// A row to be written, and the version that it replaces (0: none).
pub struct RowWrite<C> {
    /// What is to be stored.
    pub record: Arc<Record<C>>,
    /// The version that was read; any other one there means that somebody was faster.
    pub replaced_version: i64,
    /// The caller's own time that was read with it: it can advance without a new version, and what
    /// was decided by an older one would be wrong.
    pub replaced_source: Option<DateTime<Utc>>,
}

/// What rows of every resource have, column by column.
pub struct Stamps {
    /// Whose they are.
    pub store_ids: Vec<i64>,
    /// The records' ids.
    pub ids: Vec<Uuid>,
    /// What the versions are to be.
    pub versions: Vec<i64>,
    /// What they were read as.
    pub replaced: Vec<i64>,
    /// The caller's own times.
    pub sources: Vec<Option<DateTime<Utc>>>,
    /// What those were read as.
    pub replaced_sources: Vec<Option<DateTime<Utc>>>,
    /// When they were made.
    pub created: Vec<DateTime<Utc>>,
    /// When they changed.
    pub updated: Vec<DateTime<Utc>>,
}

impl Stamps {
    /// The columns of rows.
    #[must_use]
    pub fn of<C>(rows: &[RowWrite<C>]) -> Self {
        let records = || rows.iter().map(|row| &*row.record);
        Self {
            store_ids: records().map(|record| record.store_id).collect(),
            ids: records().map(|record| record.id).collect(),
            versions: records().map(|record| record.version).collect(),
            replaced: rows.iter().map(|row| row.replaced_version).collect(),
            sources: records().map(|record| record.source_updated_at).collect(),
            replaced_sources: rows.iter().map(|row| row.replaced_source).collect(),
            created: records().map(|record| record.created_at).collect(),
            updated: records().map(|record| record.updated_at).collect(),
        }
    }
}

/// A name of something in a store, as a key of maps; looked up without a copy of the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreName(pub i64, pub Box<str>);

/// The same, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreNameRef<'a>(pub i64, pub &'a str);

impl Equivalent<StoreName> for StoreNameRef<'_> {
    fn equivalent(&self, key: &StoreName) -> bool {
        self.0 == key.0 && *self.1 == *key.1
    }
}

/// How a resource's records are found in a working set.
pub trait Index<R: Resource>: Default + Send + Sync {
    /// The record that a key names.
    fn find(&self, store_id: i64, key: &R::Key) -> Option<Uuid>;
    /// Files a record, new or in place of its former state.
    fn put(&mut self, former: Option<&Record<R::Content>>, record: &Record<R::Content>);
}

/// The records that a batch touches. Its writes are applied here in order of arrival, as if they
/// came one after the other; what changed is then stored in one go, provided that the versions
/// which were read still stand.
pub struct Working<R: Resource> {
    entries: HashMap<Uuid, Entry<R::Content>>,
    index: R::Index,
    events: Vec<Event>,
}

struct Entry<C> {
    record: Arc<Record<C>>,
    /// 0 for a record that is not stored yet.
    stored_version: i64,
    stored_source: Option<DateTime<Utc>>,
    dirty: bool,
}

impl<R: Resource> Working<R> {
    /// The working set over what is stored.
    #[must_use]
    pub fn over(stored: &[Arc<Record<R::Content>>]) -> Self {
        let mut working = Self {
            entries: HashMap::with_capacity(stored.len()),
            index: R::Index::default(),
            events: Vec::new(),
        };
        for record in stored {
            working.index.put(None, record);
            let entry = Entry {
                record: Arc::clone(record),
                stored_version: record.version,
                stored_source: record.source_updated_at,
                dirty: false,
            };
            working.entries.insert(record.id, entry);
        }
        working
    }

    /// The record that a key names, in its present state.
    pub fn find(&self, store_id: i64, key: &R::Key) -> Option<&Arc<Record<R::Content>>> {
        self.by_id(self.index.find(store_id, key)?)
    }

    /// A record by its id, in its present state.
    #[must_use]
    pub fn by_id(&self, id: Uuid) -> Option<&Arc<Record<R::Content>>> {
        self.entries.get(&id).map(|entry| &entry.record)
    }

    /// Whether a record is changed, or made, in this batch.
    #[must_use]
    pub fn is_dirty(&self, id: Uuid) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.dirty)
    }

    /// Whether there is anything to be stored.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.entries.values().any(|entry| entry.dirty)
    }

    /// Whether any record is made in this batch.
    #[must_use]
    pub fn has_new(&self) -> bool {
        self.entries.values().any(|entry| entry.stored_version == 0)
    }

    /// Whether a record is made in this batch.
    #[must_use]
    pub fn is_new(&self, id: Uuid) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|entry| entry.stored_version == 0)
    }

    /// Puts a record in its new state, to be stored.
    pub fn put(&mut self, record: Arc<Record<R::Content>>) {
        let former = self.entries.get(&record.id);
        self.index.put(former.map(|entry| &*entry.record), &record);
        let stored_version = former.map_or(0, |entry| entry.stored_version);
        let stored_source = former.and_then(|entry| entry.stored_source);
        self.entries.insert(
            record.id,
            Entry {
                record,
                stored_version,
                stored_source,
                dirty: true,
            },
        );
    }

    /// Notes an event, to be stored with the rows.
    pub fn note(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The rows to be stored, in the order in which everybody locks them.
    #[must_use]
    pub fn rows(&self) -> Vec<RowWrite<R::Content>> {
        let mut rows: Vec<_> = self
            .entries
            .values()
            .filter(|entry| entry.dirty)
            .map(|entry| RowWrite {
                record: Arc::clone(&entry.record),
                replaced_version: entry.stored_version,
                replaced_source: entry.stored_source,
            })
            .collect();
        rows.sort_by(R::lock_order);
        rows
    }

    /// The events to be stored.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}
