//! What every resource shares, naming none of them.
//!
//! To know every write, read [`write`]; to know one resource, read its file in `resources`.

pub mod bulk;
pub mod consumers;
pub mod events;
pub mod failure;
pub mod group_commit;
pub mod http;
mod lines;
pub mod place;
pub mod read;
pub mod record;
pub mod request;
pub mod transaction;
pub mod write;

use std::cmp::Ordering;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::StoreAccess;
use crate::clock::Clock;
use crate::database::Connection;
use crate::error::Error;
use crate::state::State;
use crate::values::Fields;

use self::events::Event;
use self::failure::Failure;
use self::group_commit::LaneKey;
use self::read::Wanted;
use self::record::{Index, Record, RowWrite};

/// Where a record says whom it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersonAt {
    /// In itself, at these JSON pointers.
    Here {
        /// The customer's id.
        id: &'static str,
        /// Their phone.
        phone: &'static str,
    },
    /// In the record of another resource, whose key stands in this member.
    Elsewhere {
        /// The path of the other resource.
        resource: &'static str,
        /// The member.
        member: &'static str,
    },
}

/// Which rows are locked before they are read.
#[derive(Clone, Copy, Debug)]
pub enum Locks<'a> {
    /// None: the version check at the end finds out whether somebody was faster.
    None,
    /// Those that the keys at these places would make or rename.
    Fresh(&'a [usize]),
    /// All.
    All,
}

/// What a resource says of itself. The engine owns the order of steps, the resource its SQL.
pub trait Resource: Sized + Send + Sync + 'static {
    /// `order`: the first part of its events' types.
    const SINGULAR: &'static str;
    /// `orders`: its segment in paths.
    const PATH: &'static str;
    /// Members that PATCH can change; empty: the resource has no PATCH.
    const MUTABLE: &'static [&'static str];
    /// Members that only POST can set; PATCH refuses them by name.
    const IMMUTABLE: &'static [&'static str];
    /// Members that keep what is stored when a POST leaves them out, instead of falling back to
    /// their default.
    const KEPT_WHEN_LEFT_OUT: &'static [&'static str] = &[];
    /// Whether its list can be filtered by `customer_external_id`.
    const HAS_CUSTOMER: bool;
    /// Whether a record is a person: found by phone as well, and erased by DELETE.
    const IS_PERSON: bool = false;
    /// Where a record says whom it is about.
    const PERSON: PersonAt;

    /// What names a record: its external id, or more where identity is more.
    type Key: Clone + Send + Sync;
    /// A checked POST body.
    type Input: ToSchema + Send + Sync;
    /// A checked PATCH body; `()` where there is no PATCH.
    type Patch: ToSchema + Send + Sync;
    /// What is stored and compared: equal content is a replay.
    type Content: Clone + PartialEq + Send + Sync;
    /// How records are found by key in memory.
    type Index: Index<Self>;
    /// Records of another resource that this one's bodies carry along.
    type Companions: Companions<Self>;
    /// What an answer shows besides the record.
    type Extra: Send + Sync;
    /// The answer of every route that shows one record.
    type Answer: Serialize + ToSchema + Send;

    /// Reads a POST body; faults are noted in `fields`.
    fn read_input(fields: &mut Fields<'_, '_>, store: &StoreAccess) -> Option<Self::Input>;
    /// Reads the mutable members of a PATCH body; faults are noted in `fields`.
    fn read_patch(fields: &mut Fields<'_, '_>) -> Option<Self::Patch>;
    /// What a POST body says of the caller's own time.
    fn source_updated_at(input: &Self::Input) -> Option<DateTime<Utc>>;
    /// The key of a POST body.
    fn key(input: &Self::Input) -> Self::Key;
    /// What of a key must not be under way twice at the same time.
    fn lane_keys(store_id: i64, key: &Self::Key) -> Vec<LaneKey>;
    /// The same of what a POST body carries along.
    fn companion_keys(_store_id: i64, _input: &Self::Input) -> Vec<LaneKey> {
        Vec::new()
    }
    /// The keys that a path segment may mean, in order of preference.
    fn path_keys(segment: &str) -> Vec<Self::Key>;
    /// The external id of a record, if it has one.
    fn external_id(content: &Self::Content) -> Option<&str>;
    /// The path segment under which a record is found.
    fn path_segment(content: &Self::Content) -> Option<&str> {
        Self::external_id(content)
    }
    /// What an event keeps of it: nothing where it names a person.
    fn event_external_id(content: &Self::Content) -> Option<&str> {
        Self::external_id(content)
    }

    /// The content after a POST.
    fn put(input: &Self::Input, current: Option<&Self::Content>) -> Self::Content;
    /// The content after a PATCH.
    fn patch(patch: &Self::Patch, current: &Self::Content) -> Self::Content;
    /// Whether a POST body carries a companion that is news to the stored content.
    fn brings_companion(_input: &Self::Input, _current: Option<&Self::Content>) -> bool {
        false
    }
    /// Whether the content still lacks what its companions have to give.
    fn needs_companion(_content: &Self::Content) -> bool {
        false
    }
    /// Whether this change needs locks that were not taken.
    fn needs_lock(_before: Option<&Self::Content>, _after: &Self::Content) -> bool {
        false
    }

    /// In which order rows are locked by every transaction.
    fn lock_order(a: &RowWrite<Self::Content>, b: &RowWrite<Self::Content>) -> Ordering;
    /// The stored records that the keys may mean; companions get to know those that they refer to.
    fn load(
        connection: &mut Connection,
        keys: &[(i64, Self::Key)],
        locks: Locks<'_>,
        companions: &mut Self::Companions,
    ) -> impl Future<Output = sqlx::Result<Vec<Arc<Record<Self::Content>>>>> + Send;
    /// Makes rows whose keys are still free; tells how many.
    fn insert(
        connection: &mut Connection,
        rows: &[RowWrite<Self::Content>],
    ) -> impl Future<Output = sqlx::Result<u64>> + Send;
    /// Changes rows, and their companions with them, and writes the events of all that, in one
    /// statement. Where a stored version is no longer the one that is replaced, somebody was faster:
    /// its last part fails on purpose, and nothing is done.
    fn change(
        connection: &mut Connection,
        rows: &[RowWrite<Self::Content>],
        companions: &Self::Companions,
        events: &[&Event],
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
    /// Records of one store in order of their ids; companions get to know those that they refer to.
    fn page(
        connection: &mut Connection,
        wanted: &Wanted,
        limit: i64,
        companions: &mut Self::Companions,
    ) -> impl Future<Output = sqlx::Result<Vec<Arc<Record<Self::Content>>>>> + Send;
    /// The keys under which records with these ids are loaded; those that are not there have none.
    fn keys_of(
        connection: &mut Connection,
        store_id: i64,
        ids: &[Uuid],
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Key>>> + Send;
    /// Ids of a store's records after one of them, in order.
    fn ids_after(
        connection: &mut Connection,
        store_id: i64,
        after: Uuid,
        limit: i64,
    ) -> impl Future<Output = sqlx::Result<Vec<Uuid>>> + Send;
    /// How many records a store has; no more than so many are counted.
    fn count(
        connection: &mut Connection,
        store_id: i64,
        most: i64,
    ) -> impl Future<Output = sqlx::Result<i64>> + Send;
    /// The customer that a list is narrowed to.
    fn customer_id(
        _state: &State,
        _store_id: i64,
        _external_id: &str,
    ) -> impl Future<Output = Result<Option<Uuid>, Error>> + Send {
        std::future::ready(Ok(None))
    }
    /// What the answers show besides the records, in their order.
    fn extras(
        connection: &mut Connection,
        records: &[Arc<Record<Self::Content>>],
        companions: &Self::Companions,
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Extra>>> + Send;
    /// The answer.
    fn answer(record: Record<Self::Content>, extra: Self::Extra) -> Self::Answer;
    /// The answer of a dry run: ids of records that would be made are null.
    fn hide_ids(answer: &mut Self::Answer, record_is_new: bool);

    /// Two POST bodies that differ in every member; they feed the document and the tests.
    fn examples() -> [serde_json::Value; 2];
    /// A PATCH body that changes the first example in every mutable member.
    fn patch_example() -> Option<serde_json::Value>;
}

/// Records of another resource that are written along, before the rows that carry them.
pub trait Companions<R: Resource>: Default + Send + Sync {
    /// Loads what these inputs name.
    fn load(
        &mut self,
        connection: &mut Connection,
        needs: &[(i64, &R::Input)],
        locks: Locks<'_>,
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
    /// Forgets what was applied, not what was loaded.
    fn restart(&mut self);
    /// Applies one input and completes the content of its row.
    fn settle(&mut self, arrival: &Arrival<'_, R>, content: &mut R::Content, clock: &Clock);
    /// Places (among the needs) of inputs whose companions need locks that were not taken.
    fn unlocked(&self) -> &[usize];
    /// Whether [`Resource::change`] stores all of what changed.
    fn go_along(&self) -> bool;
    /// Stores what does not, in the transaction in which the rest follows.
    fn go_ahead(
        &mut self,
        connection: &mut Connection,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Stores what changed and these events, where no row of the resource itself changes.
    fn change(
        &self,
        connection: &mut Connection,
        events: &[&Event],
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
    /// The events of what changed.
    fn events(&self) -> &[Event];
}

/// One input on its way into the working set.
pub struct Arrival<'a, R: Resource> {
    /// Its place among the inputs whose companions were loaded.
    pub place: usize,
    /// Whose it is.
    pub store_id: i64,
    /// What was sent.
    pub input: &'a R::Input,
    /// When the caller's own system changed it.
    pub source_updated_at: Option<DateTime<Utc>>,
    /// The time of the batch.
    pub now: DateTime<Utc>,
}

/// For resources that carry nothing along.
#[derive(Default)]
pub struct Alone;

impl<R: Resource> Companions<R> for Alone {
    async fn load(
        &mut self,
        _: &mut Connection,
        _: &[(i64, &R::Input)],
        _: Locks<'_>,
    ) -> sqlx::Result<()> {
        Ok(())
    }

    fn restart(&mut self) {}

    fn settle(&mut self, _: &Arrival<'_, R>, _: &mut R::Content, _: &Clock) {}

    fn unlocked(&self) -> &[usize] {
        &[]
    }

    fn go_along(&self) -> bool {
        true
    }

    async fn go_ahead(&mut self, _: &mut Connection) -> Result<(), Failure> {
        Ok(())
    }

    async fn change(&self, connection: &mut Connection, events: &[&Event]) -> sqlx::Result<()> {
        events::append(connection, events).await
    }

    fn events(&self) -> &[Event] {
        &[]
    }
}
