//! The customer inside an order or a checkout.
//!
//! It is part of the order's content, kept as a digest, so a replayed order doesn't look at the
//! customer at all. An order that changes and brings a new digest merges the customer: what it
//! leaves out stays, because an order isn't the customer's home. Several orders of one batch that
//! carry the same customer are folded into one row, one version, one event.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::identity::{self, Identity};
use super::{Content, Customer, makes_or_adopts};
use crate::auth::StoreAccess;
use crate::clock::Clock;
use crate::database::Connection;
use crate::engine::events::{self, Event};
use crate::engine::failure::Failure;
use crate::engine::record::{Record, RowWrite, StoreNameRef, Working};
use crate::engine::write::{self, Outcome};
use crate::engine::{Alone, Arrival, Companions, Locks, Resource};
use crate::values::{
    Checked, Count, Email, ExternalId, Faults, Fields, FreeJson, Locale, Node, Phone, PhoneInput,
    Tags, Text, text,
};

/// The customer as an order or a checkout carries it. What is left out or null keeps what is
/// stored.
#[derive(Debug, ToSchema)]
pub struct EmbeddedCustomer {
    /// The caller's own id of this person; without it the phone names the record.
    pub external_id: Option<ExternalId>,
    /// Any spelling of a possible number; kept as E.164.
    #[schema(value_type = PhoneInput)]
    pub phone: Phone,
    /// Given name.
    #[schema(value_type = Option<Text<255>>)]
    pub first_name: Option<String>,
    /// Family name.
    #[schema(value_type = Option<Text<255>>)]
    pub last_name: Option<String>,
    /// Address for mail.
    pub email: Option<Email>,
    /// BCP 47 language tag.
    pub locale: Option<Locale>,
    /// Labels; replace the stored ones.
    pub tags: Option<Tags>,
    /// What this person has spent, as the caller counts it.
    pub lifetime_value: Option<Count>,
    /// How often this person has ordered, as the caller counts it.
    pub orders_count: Option<Count>,
    /// Of all of the above; see [`EmbeddedCustomer::digest`].
    #[schema(ignore)]
    digest: [u8; 32],
}

impl EmbeddedCustomer {
    /// Reads the member `customer`.
    ///
    /// # Errors
    /// All its faulty fields, by paths inside it.
    pub fn read(node: &Node<'_>, store: &StoreAccess) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let phone = fields.required("phone", |node| Phone::read(node, store.default_country));
        let external_id = fields.optional("external_id", ExternalId::read);
        let first_name = fields.optional("first_name", text(255));
        let last_name = fields.optional("last_name", text(255));
        let email = fields.optional("email", Email::read);
        let locale = fields.optional("locale", Locale::read);
        let tags = fields.optional("tags", Tags::read);
        let lifetime_value = fields.optional("lifetime_value", Count::read);
        let orders_count = fields.optional("orders_count", Count::read);
        fields.finish()?;
        let phone = phone.ok_or_else(Faults::default)?;
        let mut customer = Self {
            external_id,
            phone,
            first_name,
            last_name,
            email,
            locale,
            tags,
            lifetime_value,
            orders_count,
            digest: [0; 32],
        };
        customer.digest = customer.digest();
        Ok(customer)
    }

    /// Which record it means.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match &self.external_id {
            Some(external_id) => Identity::Named(external_id.clone(), self.phone.clone()),
            None => Identity::Phone(self.phone.clone()),
        }
    }

    /// SHA-256 over what was sent, member by member; what is left out takes no part, so that a
    /// member added later leaves old digests as they are.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut member = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                hash.update(name.as_bytes());
                hash.update((value.len() as u64).to_be_bytes());
                hash.update(value.as_bytes());
            }
        };
        member(
            "external_id",
            self.external_id.as_ref().map(ExternalId::as_str),
        );
        member("phone", Some(self.phone.as_str()));
        member("first_name", self.first_name.as_deref());
        member("last_name", self.last_name.as_deref());
        member("email", self.email.as_ref().map(Email::as_str));
        member("locale", self.locale.as_ref().map(Locale::as_str));
        member("tags", self.tags.as_ref().map(Tags::to_json).as_deref());
        let number = |count: Option<Count>| count.map(|count| count.get().to_string());
        member("lifetime_value", number(self.lifetime_value).as_deref());
        member("orders_count", number(self.orders_count).as_deref());
        hash.finalize().into()
    }

    /// What is stored after this: left out or null keeps what was there.
    fn merged(&self, current: Option<&Content>) -> Content {
        let mut content = current.cloned().unwrap_or_else(|| Content {
            external_id: None,
            phone: None,
            first_name: None,
            last_name: None,
            email: None,
            locale: None,
            tags: Tags::default(),
            lifetime_value: None,
            orders_count: None,
            metadata: FreeJson::empty_object(),
            erased: false,
        });
        content.phone = Some(self.phone.clone());
        keep(&mut content.external_id, self.external_id.clone());
        keep(&mut content.first_name, self.first_name.clone());
        keep(&mut content.last_name, self.last_name.clone());
        keep(
            &mut content.email,
            self.email.as_ref().map(|email| email.as_str().to_owned()),
        );
        keep(
            &mut content.locale,
            self.locale
                .as_ref()
                .map(|locale| locale.as_str().to_owned()),
        );
        keep(
            &mut content.lifetime_value,
            self.lifetime_value.map(Count::get),
        );
        keep(&mut content.orders_count, self.orders_count.map(Count::get));
        if let Some(tags) = &self.tags {
            content.tags = tags.clone();
        }
        content
    }
}

/// Takes the new value if there is one.
fn keep<T>(stored: &mut Option<T>, sent: Option<T>) {
    if sent.is_some() {
        *stored = sent;
    }
}

/// The customer of a stored order: which record, and what the order carried.
#[derive(Clone, Copy, Debug)]
pub struct CustomerRef {
    /// None until it is settled who that is.
    pub id: Option<Uuid>,
    /// None once that customer has been erased: no digest is known to differ from it.
    pub digest: Option<[u8; 32]>,
}

impl CustomerRef {
    /// The reference after a POST: the stored one, unless what is carried is news.
    #[must_use]
    pub fn after(sent: &EmbeddedCustomer, current: Option<Self>) -> Self {
        let news = Self {
            id: None,
            digest: Some(sent.digest),
        };
        match current {
            Some(current) if current == news => current,
            _ => news,
        }
    }

    /// The reference of a stored row.
    #[must_use]
    pub fn stored(id: Uuid, digest: Option<Vec<u8>>) -> Self {
        Self {
            id: Some(id),
            digest: digest.and_then(|digest| digest.try_into().ok()),
        }
    }
}

/// An unknown digest equals every other: an erased customer is not revived.
impl PartialEq for CustomerRef {
    fn eq(&self, other: &Self) -> bool {
        self.digest.is_none() || other.digest.is_none() || self.digest == other.digest
    }
}

/// A resource whose bodies carry a customer.
pub trait CarriesCustomer: Resource {
    /// The customer that was sent.
    fn customer(input: &Self::Input) -> &EmbeddedCustomer;
    /// Where the stored content refers to it.
    fn reference(content: &Self::Content) -> &CustomerRef;
    /// The same, to settle it.
    fn reference_mut(content: &mut Self::Content) -> &mut CustomerRef;
}

/// Orders or checkouts by their keys, each with the customer that it refers to: the columns are the
/// customer's, as [`customer_of_row`] takes them, and those that are named, of `carrier`.
macro_rules! select_with_customers {
    ($connection:expr, $table:literal, $columns:literal, $store_ids:expr, $external_ids:expr $(,)?) => {
        sqlx::query!(
            r#"select
                customer.store_id as "customer_store_id?",
                customer.id as "customer_record_id?",
                customer.external_id as "customer_external_id?",
                customer.phone as "customer_phone?",
                customer.first_name as "customer_first_name?",
                customer.last_name as "customer_last_name?",
                customer.email as "customer_email?",
                customer.locale as "customer_locale?",
                customer.tags as "customer_tags?: Json<Vec<String>>",
                customer.lifetime_value as "customer_lifetime_value?",
                customer.orders_count as "customer_orders_count?",
                customer.metadata::text as "customer_metadata?",
                customer.version as "customer_version?",
                customer.source_updated_at as "customer_source_updated_at?",
                customer.created_at as "customer_created_at?",
                customer.updated_at as "customer_updated_at?",
                customer.erased_at as "customer_erased_at?",
                customer.ctid as "customer_place?: Place","#
                + $columns
                + " from (
                    select unnest($1::bigint[]) as store_id, unnest($2::text[]) as external_id
                ) as wanted
                join "
                + $table
                + " carrier
                    on carrier.store_id = wanted.store_id
                    and carrier.external_id = wanted.external_id
                left join customers customer
                    on customer.store_id = carrier.store_id
                    and customer.id = carrier.customer_id",
            $store_ids,
            $external_ids as &[&str],
        )
        .fetch_all($connection)
        .await?
    };
}

/// The customer in a row of [`select_with_customers`], if it is there.
macro_rules! customer_of_row {
    ($row:ident) => {
        (|| {
            Some($crate::resources::customers::identity::Row {
                store_id: $row.customer_store_id?,
                id: $row.customer_record_id?,
                external_id: $row.customer_external_id,
                phone: $row.customer_phone,
                first_name: $row.customer_first_name,
                last_name: $row.customer_last_name,
                email: $row.customer_email,
                locale: $row.customer_locale,
                tags: $row.customer_tags?,
                lifetime_value: $row.customer_lifetime_value,
                orders_count: $row.customer_orders_count,
                metadata: $row.customer_metadata?,
                version: $row.customer_version?,
                source_updated_at: $row.customer_source_updated_at,
                created_at: $row.customer_created_at?,
                updated_at: $row.customer_updated_at?,
                erased_at: $row.customer_erased_at,
                place: $row.customer_place?,
            })
        })()
    };
}
pub(in crate::resources) use {customer_of_row, select_with_customers};

/// The customers that a batch of orders or checkouts carries along.
pub struct EmbeddedCustomers {
    /// Those that the stored orders refer to, as they were read with them.
    known: HashMap<Uuid, Arc<Record<Content>>>,
    working: Working<Customer>,
    stored: Vec<Arc<Record<Content>>>,
    locked: Locked,
    unlocked: Vec<usize>,
    folded: BTreeSet<Uuid>,
    /// Customers that orders refer to, in order of their locks.
    referred: BTreeSet<(i64, Uuid)>,
}

enum Locked {
    All,
    Places(BTreeSet<usize>),
}

impl Default for EmbeddedCustomers {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            working: Working::over(&[]),
            stored: Vec::new(),
            locked: Locked::Places(BTreeSet::new()),
            unlocked: Vec::new(),
            folded: BTreeSet::new(),
            referred: BTreeSet::new(),
        }
    }
}

impl EmbeddedCustomers {
    /// Keeps a customer that was read together with what refers to it.
    pub(in crate::resources) fn know(&mut self, row: Option<identity::Row>) {
        if let Some(row) = row {
            let record = Arc::new(Record::from(row));
            self.known.insert(record.id, record);
        }
    }

    /// Applies one customer and gives the record's id.
    fn merge(
        &mut self,
        customer: &EmbeddedCustomer,
        place: usize,
        store_id: i64,
        moment: &Moment,
        clock: &Clock,
    ) -> Uuid {
        let current = self.working.find(store_id, &customer.identity()).cloned();
        let content = customer.merged(current.as_deref().map(|record| &record.content));
        if makes_or_adopts(current.as_deref().map(|record| &record.content), &content) {
            self.note_lock(place);
        }
        let Some(current) = current else {
            return self.make(store_id, content, moment, clock);
        };
        let is_later = current.source_updated_at > moment.source_updated_at
            && moment.source_updated_at.is_some();
        if is_later || content == current.content {
            return current.id;
        }
        self.change(&current, content, moment, clock);
        current.id
    }

    /// What is stored; after taking the locks of some places, only those are read again.
    async fn refreshed(
        &mut self,
        connection: &mut Connection,
        keys: &[(i64, Identity)],
        locks: Locks<'_>,
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        let places = match locks {
            Locks::None => return self.not_known(connection, keys).await,
            Locks::All => return identity::load(connection, keys, locks).await,
            Locks::Fresh(places) => places,
        };
        let keys: Vec<_> = places.iter().map(|at| keys[*at].clone()).collect();
        let all: Vec<usize> = (0..keys.len()).collect();
        let read = identity::load(connection, &keys, Locks::Fresh(&all)).await?;
        let again: HashSet<Uuid> = read.iter().map(|record| record.id).collect();
        let mut stored = std::mem::take(&mut self.stored);
        stored.retain(|record| !again.contains(&record.id));
        stored.extend(read);
        Ok(stored)
    }

    /// What is stored, of which only those are looked up that nobody refers to yet. Only the record
    /// with an external id can be meant by it, whatever else there is.
    async fn not_known(
        &self,
        connection: &mut Connection,
        keys: &[(i64, Identity)],
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        let named = self.known.values().filter_map(|record| {
            let external_id = Customer::external_id(&record.content)?;
            Some((StoreNameRef(record.store_id, external_id), record))
        });
        let named: HashMap<_, _> = named.collect();
        let mut stored = HashMap::new();
        let mut unknown = Vec::new();
        for (store_id, key) in keys {
            let known = match key {
                Identity::Named(external_id, _) => {
                    named.get(&StoreNameRef(*store_id, external_id.as_str()))
                }
                _ => None,
            };
            match known {
                Some(record) => {
                    stored.insert(record.id, Arc::clone(record));
                }
                None => unknown.push((*store_id, key.clone())),
            }
        }
        if !unknown.is_empty() {
            for record in identity::load(connection, &unknown, Locks::None).await? {
                stored.insert(record.id, record);
            }
        }
        Ok(stored.into_values().collect())
    }

    fn note_lock(&mut self, place: usize) {
        let is_locked = match &self.locked {
            Locked::All => true,
            Locked::Places(places) => places.contains(&place),
        };
        if !is_locked {
            self.unlocked.push(place);
        }
    }

    /// Keeps the customers that stay as they are from being erased before the orders that refer to
    /// them are committed: the eraser would not see those orders and leave them their digests. The
    /// version check guards only the customers that change.
    async fn hold(&self, connection: &mut Connection) -> Result<(), Failure> {
        let kept = self.kept();
        if kept.is_empty() {
            return Ok(());
        }
        let is_stored = |(_, id): &&(i64, Uuid)| !self.working.is_new(*id);
        let stored: BTreeSet<_> = self.referred.iter().filter(is_stored).copied().collect();
        if kept.len() < stored.len() {
            // Two batches, each changing what the other one refers to, would block each other.
            identity::lock_records(connection, &stored).await?;
        }
        if identity::hold(connection, &kept).await? < kept.len() {
            return Err(Failure::Conflict);
        }
        Ok(())
    }

    /// Customers that are referred to and stay as they are.
    fn kept(&self) -> BTreeSet<(i64, Uuid)> {
        let is_kept = |(_, id): &&(i64, Uuid)| !self.working.is_dirty(*id);
        self.referred.iter().filter(is_kept).copied().collect()
    }

    /// Customers that were there and change. Where some are new, all of them have gone ahead.
    pub fn changed(&self) -> Vec<RowWrite<Content>> {
        if self.working.has_new() {
            Vec::new()
        } else {
            self.working.rows()
        }
    }

    fn make(&mut self, store_id: i64, content: Content, moment: &Moment, clock: &Clock) -> Uuid {
        let record = Arc::new(Record {
            store_id,
            id: clock.new_id(),
            version: 1,
            // An order's time is not the customer's.
            source_updated_at: None,
            created_at: moment.now,
            updated_at: moment.now,
            place: None,
            content,
        });
        self.folded.insert(record.id);
        self.working.note(Event::of::<Customer>(
            clock.new_id(),
            Outcome::Created,
            &record,
        ));
        self.working.put(Arc::clone(&record));
        record.id
    }

    /// A change; a second one of the same batch goes into the version that the first one made.
    fn change(
        &mut self,
        current: &Arc<Record<Content>>,
        content: Content,
        moment: &Moment,
        clock: &Clock,
    ) {
        if self.folded.insert(current.id) {
            let record = Arc::new(current.changed(content, None, moment.now));
            self.working.note(Event::of::<Customer>(
                clock.new_id(),
                Outcome::Updated,
                &record,
            ));
            self.working.put(record);
        } else {
            self.working.put(Arc::new(Record {
                content,
                ..Record::clone(current)
            }));
        }
    }
}

/// When an order says what it says.
struct Moment {
    source_updated_at: Option<chrono::DateTime<chrono::Utc>>,
    now: chrono::DateTime<chrono::Utc>,
}

impl<R: CarriesCustomer> Companions<R> for EmbeddedCustomers {
    async fn load(
        &mut self,
        connection: &mut Connection,
        needs: &[(i64, &R::Input)],
        locks: Locks<'_>,
    ) -> sqlx::Result<()> {
        let keys: Vec<(i64, Identity)> = needs
            .iter()
            .map(|(store_id, input)| (*store_id, R::customer(input).identity()))
            .collect();
        let stored = self.refreshed(connection, &keys, locks).await?;
        *self = Self {
            known: std::mem::take(&mut self.known),
            working: Working::over(&stored),
            stored,
            locked: match locks {
                Locks::None => Locked::Places(BTreeSet::new()),
                Locks::Fresh(places) => Locked::Places(places.iter().copied().collect()),
                Locks::All => Locked::All,
            },
            ..Self::default()
        };
        Ok(())
    }

    fn restart(&mut self) {
        self.working = Working::over(&self.stored);
        self.unlocked.clear();
        self.folded.clear();
        self.referred.clear();
    }

    fn settle(&mut self, arrival: &Arrival<'_, R>, content: &mut R::Content, clock: &Clock) {
        let moment = Moment {
            source_updated_at: arrival.source_updated_at,
            now: arrival.now,
        };
        let customer = R::customer(arrival.input);
        let id = self.merge(customer, arrival.place, arrival.store_id, &moment, clock);
        self.referred.insert((arrival.store_id, id));
        R::reference_mut(content).id = Some(id);
    }

    fn unlocked(&self) -> &[usize] {
        &self.unlocked
    }

    fn go_along(&self) -> bool {
        !self.working.has_new() && self.kept().is_empty()
    }

    async fn go_ahead(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        self.hold(connection).await?;
        if self.working.has_new() {
            write::store(connection, &self.working, &Alone, &[]).await?;
        }
        Ok(())
    }

    async fn change(&self, connection: &mut Connection, events: &[&Event]) -> sqlx::Result<()> {
        let changed = self.changed();
        if changed.is_empty() {
            return events::append(connection, events).await;
        }
        Customer::change(connection, &changed, &Alone, events).await
    }

    fn events(&self) -> &[Event] {
        self.working.events()
    }
}

/// The customer as the answer of an order or a checkout shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = OrderCustomer)]
pub enum CustomerView {
    /// As stored.
    Known(Box<KnownCustomer>),
    /// Erased: nothing is left but the id.
    Erased {
        /// The id that the customer had.
        id: Uuid,
        /// Always true.
        erased: bool,
    },
}

/// A customer as stored, without its free data.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct KnownCustomer {
    /// UUIDv7; null only in the answer of a dry run that would create it.
    #[schema(required)]
    id: Option<Uuid>,
    #[schema(required)]
    external_id: Option<ExternalId>,
    /// E.164.
    phone: Phone,
    #[schema(required)]
    first_name: Option<String>,
    #[schema(required)]
    last_name: Option<String>,
    #[schema(required)]
    email: Option<String>,
    #[schema(required)]
    locale: Option<String>,
    tags: Tags,
    #[schema(required)]
    lifetime_value: Option<i64>,
    #[schema(required)]
    orders_count: Option<i64>,
    /// Made by the very request that is answered.
    #[serde(skip)]
    #[schema(ignore)]
    is_new: bool,
}

/// The customer of one order or checkout, until it is shown.
pub struct Carried {
    id: Uuid,
    /// None once the row is gone.
    record: Option<Arc<Record<Content>>>,
    /// Made by the very request that is answered.
    is_new: bool,
}

impl From<Carried> for CustomerView {
    fn from(carried: Carried) -> Self {
        let erased = Self::Erased {
            id: carried.id,
            erased: true,
        };
        let Some(record) = carried.record else {
            return erased;
        };
        // Orders of one batch may carry the same one.
        let content = Arc::unwrap_or_clone(record).content;
        let Some(phone) = content.phone else {
            return erased;
        };
        Self::Known(Box::new(KnownCustomer {
            id: Some(carried.id),
            external_id: content.external_id,
            phone,
            first_name: content.first_name,
            last_name: content.last_name,
            email: content.email,
            locale: content.locale,
            tags: content.tags,
            lifetime_value: content.lifetime_value,
            orders_count: content.orders_count,
            is_new: carried.is_new,
        }))
    }
}

impl CustomerView {
    /// For a dry run: a customer that would be made has no id yet.
    pub fn hide_new_id(&mut self) {
        if let Self::Known(customer) = self
            && customer.is_new
        {
            customer.id = None;
        }
    }
}

/// The customers of orders or checkouts, in their order.
///
/// # Errors
/// When the database fails.
pub async fn carried<R: CarriesCustomer>(
    connection: &mut Connection,
    records: &[Arc<Record<R::Content>>],
    companions: &EmbeddedCustomers,
) -> sqlx::Result<Vec<Carried>> {
    let mut missing: BTreeSet<(i64, Uuid)> = BTreeSet::new();
    let mut carried: Vec<Carried> = Vec::with_capacity(records.len());
    for record in records {
        let id = R::reference(&record.content).id.unwrap_or_default();
        let known = companions.working.by_id(id);
        let known = known.or_else(|| companions.known.get(&id));
        if known.is_none() {
            missing.insert((record.store_id, id));
        }
        carried.push(Carried {
            id,
            record: known.cloned(),
            is_new: companions.working.is_new(id),
        });
    }
    if !missing.is_empty() {
        let keys: Vec<_> = missing
            .into_iter()
            .map(|(store_id, id)| (store_id, Identity::Id(id)))
            .collect();
        let read = identity::load(connection, &keys, Locks::None).await?;
        let read: HashMap<Uuid, _> = read.into_iter().map(|record| (record.id, record)).collect();
        for customer in carried.iter_mut().filter(|one| one.record.is_none()) {
            customer.record = read.get(&customer.id).cloned();
        }
    }
    Ok(carried)
}
