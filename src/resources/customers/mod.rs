//! Customers: people known by the merchant's external id or by their phone.

pub mod embedded;
pub mod erase;
pub mod identity;

use std::cmp::Ordering;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use self::identity::{Directory, Identity};
use crate::auth::StoreAccess;
use crate::database::Connection;
use crate::engine::events::Event;
use crate::engine::group_commit::LaneKey;
use crate::engine::read::Wanted;
use crate::engine::record::{Record, RowWrite, Stamps};
use crate::engine::{Alone, Locks, PersonAt, Resource, failure};
use crate::error::Error;
use crate::state::State;
use crate::values::{
    Count, Email, ExternalId, Fields, FreeJson, FreeObject, Locale, METADATA_BYTES, Phone,
    PhoneInput, Tags, Text, Timestamp, TimestampInput, text,
};

/// The resource.
pub struct Customer;

/// What is stored of a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The merchant's name for this person.
    pub external_id: Option<ExternalId>,
    /// None only for an erased one.
    pub phone: Option<Phone>,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Address for mail.
    pub email: Option<String>,
    /// BCP 47.
    pub locale: Option<String>,
    /// Labels.
    pub tags: Tags,
    /// What the merchant says this person has spent.
    pub lifetime_value: Option<i64>,
    /// How often the merchant says this person has ordered.
    pub orders_count: Option<i64>,
    /// Free data.
    pub metadata: FreeJson,
    /// Nothing is left but the id.
    pub erased: bool,
}

/// A customer as the caller pushes it.
#[derive(Debug, ToSchema)]
#[schema(as = CustomerInput)]
pub struct CustomerInput {
    /// The caller's own id of this person; without it the phone names the record.
    #[schema(required = false)]
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
    /// Labels; duplicates are dropped, the order is kept.
    pub tags: Option<Tags>,
    /// What this person has spent, as the caller counts it.
    pub lifetime_value: Option<Count>,
    /// How often this person has ordered, as the caller counts it.
    pub orders_count: Option<Count>,
    /// Free data, at most 64 KiB.
    #[schema(value_type = Option<FreeObject>)]
    pub metadata: Option<FreeJson>,
    /// When the caller's own system changed the record; an older push than the stored one is stale.
    #[schema(value_type = Option<TimestampInput>)]
    pub source_updated_at: Option<Timestamp>,
}

/// A customer as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Customer)]
pub struct CustomerAnswer {
    /// UUIDv7; null only in the answer of a dry run that would create it.
    #[schema(required)]
    id: Option<Uuid>,
    /// The store.
    store_id: i64,
    /// The caller's own id.
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
    #[schema(value_type = FreeObject)]
    metadata: FreeJson,
    /// Grows by one with each change.
    version: i64,
    #[schema(required)]
    source_updated_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Resource for Customer {
    const SINGULAR: &'static str = "customer";
    const PATH: &'static str = "customers";
    const MUTABLE: &'static [&'static str] = &[];
    const IMMUTABLE: &'static [&'static str] = &[];
    const HAS_CUSTOMER: bool = false;
    const IS_PERSON: bool = true;
    const PERSON: PersonAt = PersonAt::Here {
        id: "/id",
        phone: "/phone",
    };

    type Key = Identity;
    type Input = CustomerInput;
    type Patch = ();
    type Content = Content;
    type Index = Directory;
    type Companions = Alone;
    type Extra = ();
    type Answer = CustomerAnswer;

    fn read_input(fields: &mut Fields<'_, '_>, store: &StoreAccess) -> Option<CustomerInput> {
        let phone = fields.required("phone", |node| Phone::read(node, store.default_country));
        let input = CustomerInput {
            external_id: fields.optional("external_id", ExternalId::read),
            first_name: fields.optional("first_name", text(255)),
            last_name: fields.optional("last_name", text(255)),
            email: fields.optional("email", Email::read),
            locale: fields.optional("locale", Locale::read),
            tags: fields.optional("tags", Tags::read),
            lifetime_value: fields.optional("lifetime_value", Count::read),
            orders_count: fields.optional("orders_count", Count::read),
            metadata: fields.optional("metadata", |node| FreeJson::object(node, METADATA_BYTES)),
            source_updated_at: fields.optional("source_updated_at", Timestamp::read),
            phone: phone?,
        };
        Some(input)
    }

    fn read_patch(_: &mut Fields<'_, '_>) -> Option<()> {
        None
    }

    fn source_updated_at(input: &CustomerInput) -> Option<DateTime<Utc>> {
        input.source_updated_at.map(Timestamp::utc)
    }

    fn key(input: &CustomerInput) -> Identity {
        match &input.external_id {
            Some(external_id) => Identity::Named(external_id.clone(), input.phone.clone()),
            None => Identity::Phone(input.phone.clone()),
        }
    }

    fn lane_keys(store_id: i64, key: &Identity) -> Vec<LaneKey> {
        key.lane_keys(store_id)
    }

    fn path_keys(segment: &str) -> Vec<Identity> {
        let named = ExternalId::parse(segment).ok().map(Identity::ExternalId);
        let alone = Phone::parse(segment, None).ok().map(Identity::Alone);
        named.into_iter().chain(alone).collect()
    }

    fn external_id(content: &Content) -> Option<&str> {
        content.external_id.as_ref().map(ExternalId::as_str)
    }

    fn path_segment(content: &Content) -> Option<&str> {
        Self::external_id(content).or_else(|| content.phone.as_ref().map(Phone::as_str))
    }

    fn event_external_id(_: &Content) -> Option<&str> {
        None
    }

    /// Replaces everything but an external id that the body leaves out: rule 2 of identity.
    fn put(input: &CustomerInput, current: Option<&Content>) -> Content {
        let kept = current.and_then(|current| current.external_id.clone());
        Content {
            external_id: input.external_id.clone().or(kept),
            phone: Some(input.phone.clone()),
            first_name: input.first_name.clone(),
            last_name: input.last_name.clone(),
            email: input.email.as_ref().map(|email| email.as_str().to_owned()),
            locale: input
                .locale
                .as_ref()
                .map(|locale| locale.as_str().to_owned()),
            tags: input.tags.clone().unwrap_or_default(),
            lifetime_value: input.lifetime_value.map(Count::get),
            orders_count: input.orders_count.map(Count::get),
            metadata: input
                .metadata
                .clone()
                .unwrap_or_else(FreeJson::empty_object),
            erased: false,
        }
    }

    fn patch((): &(), current: &Content) -> Content {
        current.clone()
    }

    fn needs_lock(before: Option<&Content>, after: &Content) -> bool {
        makes_or_adopts(before, after)
    }

    fn lock_order(a: &RowWrite<Content>, b: &RowWrite<Content>) -> Ordering {
        lock_order(a, b)
    }

    async fn load(
        connection: &mut Connection,
        keys: &[(i64, Identity)],
        locks: Locks<'_>,
        _: &mut Alone,
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        identity::load(connection, keys, locks).await
    }

    async fn insert(connection: &mut Connection, rows: &[RowWrite<Content>]) -> sqlx::Result<u64> {
        insert(connection, rows).await
    }

    async fn change(
        connection: &mut Connection,
        rows: &[RowWrite<Content>],
        _: &Alone,
        events: &[&Event],
    ) -> sqlx::Result<()> {
        change(connection, rows, events).await
    }

    async fn page(
        connection: &mut Connection,
        wanted: &Wanted,
        limit: i64,
        _: &mut Alone,
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        let store_id = wanted.store_id;
        let range = (wanted.after, wanted.through);
        loop {
            let ids = page_of_ids(&mut *connection, store_id, range, limit).await?;
            let keys: Vec<_> = ids.iter().map(|id| (store_id, Identity::Id(*id))).collect();
            let mut records = identity::load(&mut *connection, &keys, Locks::None).await?;
            records.retain(|record| !record.content.erased);
            // Erased in between: a short page would be taken for the last one.
            if records.len() == ids.len() {
                records.sort_by_key(|record| record.id);
                return Ok(records);
            }
        }
    }

    async fn keys_of(
        connection: &mut Connection,
        store_id: i64,
        ids: &[Uuid],
    ) -> sqlx::Result<Vec<Identity>> {
        let ids = sqlx::query_scalar!(
            "select id from customers where store_id = $1 and id = any($2) and erased_at is null",
            store_id,
            ids,
        );
        let ids = ids.fetch_all(connection).await?;
        Ok(ids.into_iter().map(Identity::Id).collect())
    }

    async fn ids_after(
        connection: &mut Connection,
        store_id: i64,
        after: Uuid,
        limit: i64,
    ) -> sqlx::Result<Vec<Uuid>> {
        page_of_ids(connection, store_id, (after, Uuid::max()), limit).await
    }

    async fn count(connection: &mut Connection, store_id: i64, most: i64) -> sqlx::Result<i64> {
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!"
            from (
                select from customers where store_id = $1 and erased_at is null limit $2
            ) counted"#,
            store_id,
            most,
        );
        count.fetch_one(connection).await
    }

    async fn extras(
        _: &mut Connection,
        records: &[Arc<Record<Content>>],
        _: &Alone,
    ) -> sqlx::Result<Vec<()>> {
        Ok(vec![(); records.len()])
    }

    fn answer(record: Record<Content>, (): ()) -> CustomerAnswer {
        let content = record.content;
        CustomerAnswer {
            id: Some(record.id),
            store_id: record.store_id,
            external_id: content.external_id,
            // An erased customer is never answered.
            phone: content
                .phone
                .unwrap_or_else(|| Phone::from_stored(String::new())),
            first_name: content.first_name,
            last_name: content.last_name,
            email: content.email,
            locale: content.locale,
            tags: content.tags,
            lifetime_value: content.lifetime_value,
            orders_count: content.orders_count,
            metadata: content.metadata,
            version: record.version,
            source_updated_at: record.source_updated_at.map(Timestamp::from_utc),
            created_at: Timestamp::from_utc(record.created_at),
            updated_at: Timestamp::from_utc(record.updated_at),
        }
    }

    fn hide_ids(answer: &mut CustomerAnswer, record_is_new: bool) {
        if record_is_new {
            answer.id = None;
        }
    }

    fn examples() -> [serde_json::Value; 2] {
        [
            json!({
                "external_id": "C-1001",
                "phone": "+33612345678",
                "first_name": "Camille",
                "last_name": "Martin",
                "email": "camille.martin@example.com",
                "locale": "fr-FR",
                "tags": ["vip", "newsletter"],
                "lifetime_value": 1250,
                "orders_count": 7,
                "metadata": {"loyalty": {"level": 3}},
                "source_updated_at": "2026-01-15T09:30:00Z"
            }),
            json!({
                "external_id": "C-1002",
                "phone": "+447700900123",
                "first_name": "Alex",
                "last_name": "Taylor",
                "email": "alex@example.org",
                "locale": "en-GB",
                "tags": ["wholesale"],
                "lifetime_value": 90,
                "orders_count": 1,
                "metadata": {"source": "till"},
                "source_updated_at": "2026-01-16T10:00:00Z"
            }),
        ]
    }

    fn patch_example() -> Option<serde_json::Value> {
        None
    }
}

/// Ids of customers who are not erased, in order.
async fn page_of_ids(
    connection: &mut Connection,
    store_id: i64,
    (after, through): (Uuid, Uuid),
    limit: i64,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "select id
        from customers
        where store_id = $1
            and id > $2
            and id <= $3
            and erased_at is null
        order by id
        limit $4",
        store_id,
        after,
        through,
        limit,
    )
    .fetch_all(connection)
    .await
}

/// Whether a change makes a record, or gives one an external id that had none.
#[must_use]
pub fn makes_or_adopts(before: Option<&Content>, after: &Content) -> bool {
    before.is_none_or(|before| before.external_id.is_none() && after.external_id.is_some())
}

/// Stored rows by id first, then new ones by what must be unique about them.
#[must_use]
pub fn lock_order(a: &RowWrite<Content>, b: &RowWrite<Content>) -> Ordering {
    a.is_new()
        .cmp(&b.is_new())
        .then_with(|| a.record.store_id.cmp(&b.record.store_id))
        .then_with(|| match a.is_new() {
            false => Ordering::Equal,
            true => unique_part(a).cmp(&unique_part(b)),
        })
        .then_with(|| a.record.id.cmp(&b.record.id))
}

fn unique_part(row: &RowWrite<Content>) -> (Option<&str>, Option<&str>) {
    (
        Customer::external_id(&row.record.content),
        row.record.content.phone.as_ref().map(Phone::as_str),
    )
}

/// The contents of rows, column by column.
pub(super) struct Columns<'a> {
    pub(super) external_ids: Vec<Option<&'a str>>,
    pub(super) phones: Vec<Option<&'a str>>,
    pub(super) first_names: Vec<Option<&'a str>>,
    pub(super) last_names: Vec<Option<&'a str>>,
    pub(super) emails: Vec<Option<&'a str>>,
    pub(super) locales: Vec<Option<&'a str>>,
    pub(super) tags: Vec<Option<String>>,
    pub(super) values: Vec<Option<i64>>,
    pub(super) counts: Vec<Option<i64>>,
    pub(super) metadata: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(rows: &'a [RowWrite<Content>]) -> Self {
        let contents = || rows.iter().map(|row| &row.record.content);
        Self {
            external_ids: contents().map(|c| Customer::external_id(c)).collect(),
            phones: contents()
                .map(|c| c.phone.as_ref().map(Phone::as_str))
                .collect(),
            first_names: contents().map(|c| c.first_name.as_deref()).collect(),
            last_names: contents().map(|c| c.last_name.as_deref()).collect(),
            emails: contents().map(|c| c.email.as_deref()).collect(),
            locales: contents().map(|c| c.locale.as_deref()).collect(),
            tags: rows
                .iter()
                .map(|row| row.news(|c| &c.tags).map(Tags::to_json))
                .collect(),
            values: contents().map(|c| c.lifetime_value).collect(),
            counts: contents().map(|c| c.orders_count).collect(),
            metadata: rows
                .iter()
                .map(|row| row.news(|c| c.metadata.as_str()))
                .collect(),
        }
    }
}

/// Makes customers; tells how many, for a key may be taken meanwhile.
async fn insert(connection: &mut Connection, rows: &[RowWrite<Content>]) -> sqlx::Result<u64> {
    let (stamps, columns) = (Stamps::of(rows), Columns::of(rows));
    let done = sqlx::query!(
        "insert into customers (
            store_id, id, external_id, phone, first_name, last_name, email, locale, tags,
            lifetime_value, orders_count, metadata, version, replaced_version, source_updated_at,
            created_at, updated_at
        )
        select
            store_id, id, external_id, phone, first_name, last_name, email, locale, tags::jsonb,
            lifetime_value, orders_count, metadata::jsonb, version, replaced_version,
            source_updated_at, created_at, updated_at
        from (
            select
                unnest($1::bigint[]) as store_id,
                unnest($2::uuid[]) as id,
                unnest($3::text[]) as external_id,
                unnest($4::text[]) as phone,
                unnest($5::text[]) as first_name,
                unnest($6::text[]) as last_name,
                unnest($7::text[]) as email,
                unnest($8::text[]) as locale,
                unnest($9::text[]) as tags,
                unnest($10::bigint[]) as lifetime_value,
                unnest($11::bigint[]) as orders_count,
                unnest($12::text[]) as metadata,
                unnest($13::bigint[]) as version,
                unnest($14::bigint[]) as replaced_version,
                unnest($15::timestamptz[]) as source_updated_at,
                unnest($16::timestamptz[]) as created_at,
                unnest($17::timestamptz[]) as updated_at
        ) as row
        on conflict do nothing",
        &stamps.store_ids,
        &stamps.ids,
        &columns.external_ids as &[Option<&str>],
        &columns.phones as &[Option<&str>],
        &columns.first_names as &[Option<&str>],
        &columns.last_names as &[Option<&str>],
        &columns.emails as &[Option<&str>],
        &columns.locales as &[Option<&str>],
        &columns.tags as &[Option<String>],
        &columns.values as &[Option<i64>],
        &columns.counts as &[Option<i64>],
        &columns.metadata as &[Option<&str>],
        &stamps.versions,
        &stamps.replaced,
        &stamps.sources as &[Option<DateTime<Utc>>],
        &stamps.created,
        &stamps.updated,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// A statement that changes customers, `$9` to `$26`, writes events, and does what its other parts say,
/// provided that each customer still has the version that is replaced, and that a condition holds.
macro_rules! write_with_customers {
    (
        $connection:expr, $customers:expr, $events:expr, [$($part:literal),*],
        if [$($condition:literal),*] $(, $value:expr)* $(,)?
    ) => {{
        let stamps = $crate::engine::record::Stamps::of($customers);
        let columns = $crate::resources::customers::Columns::of($customers);
        $crate::engine::events::write_with_events!(
            $connection,
            $events,
            [
                ", customer as (
                update customers c
                set external_id = row.external_id,
                    phone = row.phone,
                    first_name = row.first_name,
                    last_name = row.last_name,
                    email = row.email,
                    locale = row.locale,
                    tags = coalesce(row.tags::jsonb, c.tags),
                    lifetime_value = row.lifetime_value,
                    orders_count = row.orders_count,
                    metadata = coalesce(row.metadata::jsonb, c.metadata),
                    version = row.version,
                    replaced_version = row.replaced_version,
                    source_updated_at = row.source_updated_at,
                    updated_at = row.updated_at
                from (
                    select
                        unnest($9::bigint[]) as store_id,
                        unnest($10::uuid[]) as id,
                        unnest($11::text[]) as external_id,
                        unnest($12::text[]) as phone,
                        unnest($13::text[]) as first_name,
                        unnest($14::text[]) as last_name,
                        unnest($15::text[]) as email,
                        unnest($16::text[]) as locale,
                        unnest($17::text[]) as tags,
                        unnest($18::bigint[]) as lifetime_value,
                        unnest($19::bigint[]) as orders_count,
                        unnest($20::text[]) as metadata,
                        unnest($21::bigint[]) as version,
                        unnest($22::bigint[]) as replaced_version,
                        unnest($23::timestamptz[]) as source_updated_at,
                        unnest($24::timestamptz[]) as updated_at,
                        unnest($25::timestamptz[]) as replaced_source,
                        unnest($26::tid[]) as place
                ) as row
                where c.ctid = row.place
                    and c.store_id = row.store_id
                    and c.id = row.id
                    and c.version = row.replaced_version
                    and c.erased_at is null
                    and c.source_updated_at is not distinct from row.replaced_source
                returning 1
            )"
                $(, $part)*
            ],
            if [
                "(select count(*) from customer) = cardinality($9::bigint[])"
                $(, " and ", $condition)*
            ],
            &stamps.store_ids,
            &stamps.ids,
            &columns.external_ids as &[Option<&str>],
            &columns.phones as &[Option<&str>],
            &columns.first_names as &[Option<&str>],
            &columns.last_names as &[Option<&str>],
            &columns.emails as &[Option<&str>],
            &columns.locales as &[Option<&str>],
            &columns.tags as &[Option<String>],
            &columns.values as &[Option<i64>],
            &columns.counts as &[Option<i64>],
            &columns.metadata as &[Option<&str>],
            &stamps.versions,
            &stamps.replaced,
            &stamps.sources as &[Option<chrono::DateTime<chrono::Utc>>],
            &stamps.updated,
            &stamps.replaced_sources as &[Option<chrono::DateTime<chrono::Utc>>],
            &stamps.places as &[Option<$crate::engine::place::Place>]
            $(, $value)*
        )
    }};
}
pub(super) use write_with_customers;

/// Changes customers, all of them provided that the stored versions are still those that they
/// replace.
async fn change(
    connection: &mut Connection,
    rows: &[RowWrite<Content>],
    events: &[&Event],
) -> sqlx::Result<()> {
    write_with_customers!(connection, rows, events, [], if []).await?;
    Ok(())
}

/// Whether any record of the store has this phone, as E.164.
///
/// # Errors
/// When the database fails.
pub async fn has_phone(
    connection: &mut Connection,
    store_id: i64,
    phone: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (
            select from customers where store_id = $1 and phone = $2
        ) as "exists!""#,
        store_id,
        phone,
    )
    .fetch_one(connection)
    .await
}

/// The id of the customer with this external id.
///
/// # Errors
/// When the database fails.
pub async fn id_of(state: &State, store_id: i64, external_id: &str) -> Result<Option<Uuid>, Error> {
    let Ok(external_id) = ExternalId::parse(external_id) else {
        return Ok(None);
    };
    sqlx::query_scalar!(
        "select id from customers where store_id = $1 and external_id = $2",
        store_id,
        external_id.as_str(),
    )
    .fetch_optional(&state.pool)
    .await
    .map_err(failure::of_read)
}

/// The present external ids of customers, for events that don't keep them.
///
/// # Errors
/// When the database fails.
pub async fn external_ids(
    connection: &mut Connection,
    store_id: i64,
    ids: &[Uuid],
) -> sqlx::Result<Vec<(Uuid, String)>> {
    let rows = sqlx::query!(
        r#"select id, external_id as "external_id!"
        from customers
        where store_id = $1 and id = any($2) and external_id is not null"#,
        store_id,
        ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.id, row.external_id))
        .collect())
}

/// Keeps customers from being erased until the transaction ends; waits for an erasure that is under way.
///
/// # Errors
/// When the database fails.
pub async fn hold(connection: &mut Connection, store_id: i64, id: Uuid) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        "select id from customers where store_id = $1 and id = $2 for key share",
        store_id,
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(())
}
