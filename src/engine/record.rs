//! Records in memory: what is stored, and a batch's working set of them.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use hashbrown::{Equivalent, HashMap};
use uuid::Uuid;

use super::Resource;
use super::events::Event;
use super::place::Place;

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
    /// Where its row lay when it was read; none of a record that is not stored yet.
    pub place: Option<Place>,
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

/// A row to be written.
pub struct RowWrite<C> {
    /// What is to be stored.
    pub record: Arc<Record<C>>,
    /// What it replaces, as it was read; none for a new row. Anything else there means that somebody
    /// was faster.
    pub stored: Option<Arc<Record<C>>>,
}

impl<C> RowWrite<C> {
    /// Whether there is no such row yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.stored.is_none()
    }

    /// The version that was read; 0 for a new row.
    fn replaced_version(&self) -> i64 {
        self.stored.as_ref().map_or(0, |stored| stored.version)
    }

    /// The caller's own time that was read: it can advance without a new version, and what was
    /// decided by an older one would be wrong.
    fn replaced_source(&self) -> Option<DateTime<Utc>> {
        self.stored
            .as_ref()
            .and_then(|stored| stored.source_updated_at)
    }

    /// A part of the content, if it has to be stored: nothing where it is there already. What is
    /// large and seldom changes is neither sent nor read, nor written anew where it lies apart.
    pub fn news<T: PartialEq + ?Sized>(&self, part: impl Fn(&C) -> &T) -> Option<&T> {
        let wanted = part(&self.record.content);
        let is_there = |stored: &Arc<Record<C>>| part(&stored.content) == wanted;
        (!self.stored.as_ref().is_some_and(is_there)).then_some(wanted)
    }
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
    /// Where they were read.
    pub places: Vec<Option<Place>>,
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
            replaced: rows.iter().map(RowWrite::replaced_version).collect(),
            sources: records().map(|record| record.source_updated_at).collect(),
            replaced_sources: rows.iter().map(RowWrite::replaced_source).collect(),
            places: records().map(|record| record.place).collect(),
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
    /// As it was read; none for a record that is not stored yet.
    stored: Option<Arc<Record<C>>>,
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
                stored: Some(Arc::clone(record)),
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
        self.entries.values().any(|entry| entry.stored.is_none())
    }

    /// Whether a record is made in this batch.
    #[must_use]
    pub fn is_new(&self, id: Uuid) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|entry| entry.stored.is_none())
    }

    /// Puts a record in its new state, to be stored.
    pub fn put(&mut self, record: Arc<Record<R::Content>>) {
        let former = self.entries.get(&record.id);
        self.index.put(former.map(|entry| &*entry.record), &record);
        let stored = former.and_then(|entry| entry.stored.clone());
        self.entries.insert(
            record.id,
            Entry {
                record,
                stored,
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
                stored: entry.stored.clone(),
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
