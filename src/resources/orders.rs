//! Orders.

use std::cmp::Ordering;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::customers::embedded::{
    Carried, CarriesCustomer, CustomerRef, CustomerView, EmbeddedCustomer, EmbeddedCustomers,
    customer_of_row, select_with_customers,
};
use super::customers::{self, embedded, write_with_customers};
use crate::auth::StoreAccess;
use crate::database::Connection;
use crate::engine::events::Event;
use crate::engine::group_commit::LaneKey;
use crate::engine::place::Place;
use crate::engine::read::{ByExternalId, Wanted, by_external_id, found_by_id, key_columns};
use crate::engine::record::{Record, RowWrite, Stamps};
use crate::engine::{Locks, PersonAt, Resource};
use crate::error::Error;
use crate::state::State;
use crate::values::{
    Currency, CurrencyInput, ExternalId, Fields, FreeJson, FreeObject, FreeObjects, LINE_ITEMS,
    LINE_ITEMS_BYTES, METADATA_BYTES, Money, MoneyInput, Patch, Tags, Text, Timestamp,
    TimestampInput, text,
};

/// The resource.
pub struct Order;

/// What is stored of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    external_id: ExternalId,
    placed_at: DateTime<Utc>,
    total_price: Decimal,
    currency: Option<Currency>,
    financial_status: Option<String>,
    fulfillment_status: Option<String>,
    customer: CustomerRef,
    line_items: FreeJson,
    tags: Tags,
    metadata: FreeJson,
}

/// An order as the caller pushes it.
#[derive(Debug, ToSchema)]
pub struct OrderInput {
    /// The caller's own id of the order: its natural key in the store.
    pub external_id: ExternalId,
    /// When the order was placed.
    #[schema(value_type = TimestampInput)]
    pub placed_at: Timestamp,
    /// What the shopper pays, in units of `currency`.
    #[schema(value_type = MoneyInput)]
    pub total_price: Money,
    /// ISO 4217.
    #[schema(value_type = Option<CurrencyInput>)]
    pub currency: Option<Currency>,
    /// For example `paid`.
    #[schema(value_type = Option<Text<64>>)]
    pub financial_status: Option<String>,
    /// For example `fulfilled`.
    #[schema(value_type = Option<Text<64>>)]
    pub fulfillment_status: Option<String>,
    /// Who ordered.
    pub customer: EmbeddedCustomer,
    /// What was ordered: at most 5,000 objects of any shape.
    #[schema(value_type = Option<FreeObjects>)]
    pub line_items: Option<FreeJson>,
    /// Labels; duplicates are dropped, the order is kept.
    pub tags: Option<Tags>,
    /// Free data, at most 64 KiB.
    #[schema(value_type = Option<FreeObject>)]
    pub metadata: Option<FreeJson>,
    /// When the caller's own system changed the record; an older push than the stored one is stale.
    #[schema(value_type = Option<TimestampInput>)]
    pub source_updated_at: Option<Timestamp>,
}

/// Changes to an order: what is absent stays, null clears.
#[derive(Debug, ToSchema)]
pub struct OrderPatch {
    /// For example `refunded`.
    #[schema(value_type = Option<Text<64>>)]
    pub financial_status: Patch<String>,
    /// For example `fulfilled`.
    #[schema(value_type = Option<Text<64>>)]
    pub fulfillment_status: Patch<String>,
    /// Replaced whole.
    #[schema(value_type = Option<Tags>)]
    pub tags: Patch<Tags>,
    /// Replaced whole.
    #[schema(value_type = Option<FreeObject>)]
    pub metadata: Patch<FreeJson>,
}

/// An order as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Order)]
pub struct OrderAnswer {
    /// UUIDv7; null only in the answer of a dry run that would create it.
    #[schema(required)]
    id: Option<Uuid>,
    /// The store.
    store_id: i64,
    external_id: ExternalId,
    placed_at: Timestamp,
    total_price: Money,
    #[schema(required)]
    currency: Option<Currency>,
    #[schema(required)]
    financial_status: Option<String>,
    #[schema(required)]
    fulfillment_status: Option<String>,
    /// As stored.
    customer: CustomerView,
    #[schema(value_type = FreeObjects)]
    line_items: FreeJson,
    tags: Tags,
    #[schema(value_type = FreeObject)]
    metadata: FreeJson,
    /// Grows by one with each change.
    version: i64,
    #[schema(required)]
    source_updated_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl CarriesCustomer for Order {
    fn customer(input: &OrderInput) -> &EmbeddedCustomer {
        &input.customer
    }

    fn reference(content: &Content) -> &CustomerRef {
        &content.customer
    }

    fn reference_mut(content: &mut Content) -> &mut CustomerRef {
        &mut content.customer
    }
}

impl Resource for Order {
    const SINGULAR: &'static str = "order";
    const PATH: &'static str = "orders";
    const MUTABLE: &'static [&'static str] =
        &["financial_status", "fulfillment_status", "tags", "metadata"];
    const IMMUTABLE: &'static [&'static str] = &[
        "external_id",
        "placed_at",
        "total_price",
        "currency",
        "customer",
        "line_items",
    ];
    const HAS_CUSTOMER: bool = true;
    const PERSON: PersonAt = PersonAt::Here {
        id: "/customer/id",
        phone: "/customer/phone",
    };

    type Key = ExternalId;
    type Input = OrderInput;
    type Patch = OrderPatch;
    type Content = Content;
    type Index = ByExternalId<Self>;
    type Companions = EmbeddedCustomers;
    type Extra = Carried;
    type Answer = OrderAnswer;

    fn read_input(fields: &mut Fields<'_, '_>, store: &StoreAccess) -> Option<OrderInput> {
        let external_id = fields.required("external_id", ExternalId::read);
        let placed_at = fields.required("placed_at", Timestamp::read);
        let total_price = fields.required("total_price", Money::read);
        let customer = fields.required("customer", |node| EmbeddedCustomer::read(node, store));
        let currency = fields.optional("currency", Currency::read);
        let financial_status = fields.optional("financial_status", text(64));
        let fulfillment_status = fields.optional("fulfillment_status", text(64));
        let line_items = fields.optional("line_items", |node| {
            FreeJson::objects(node, LINE_ITEMS, LINE_ITEMS_BYTES)
        });
        let tags = fields.optional("tags", Tags::read);
        let metadata = fields.optional("metadata", |node| FreeJson::object(node, METADATA_BYTES));
        let source_updated_at = fields.optional("source_updated_at", Timestamp::read);
        Some(OrderInput {
            external_id: external_id?,
            placed_at: placed_at?,
            total_price: total_price?,
            customer: customer?,
            currency,
            financial_status,
            fulfillment_status,
            line_items,
            tags,
            metadata,
            source_updated_at,
        })
    }

    fn read_patch(fields: &mut Fields<'_, '_>) -> Option<OrderPatch> {
        Some(OrderPatch {
            financial_status: fields.patch("financial_status", text(64)),
            fulfillment_status: fields.patch("fulfillment_status", text(64)),
            tags: fields.patch("tags", Tags::read),
            metadata: fields.patch("metadata", |node| FreeJson::object(node, METADATA_BYTES)),
        })
    }

    fn source_updated_at(input: &OrderInput) -> Option<DateTime<Utc>> {
        input.source_updated_at.map(Timestamp::utc)
    }

    fn key(input: &OrderInput) -> ExternalId {
        input.external_id.clone()
    }

    fn lane_keys(store_id: i64, key: &ExternalId) -> Vec<LaneKey> {
        vec![LaneKey::of(store_id, Self::PATH, key.as_str())]
    }

    fn companion_keys(store_id: i64, input: &OrderInput) -> Vec<LaneKey> {
        input.customer.identity().lane_keys(store_id)
    }

    fn path_keys(segment: &str) -> Vec<ExternalId> {
        ExternalId::parse(segment).ok().into_iter().collect()
    }

    fn external_id(content: &Content) -> Option<&str> {
        Some(content.external_id.as_str())
    }

    fn put(input: &OrderInput, current: Option<&Content>) -> Content {
        Content {
            external_id: input.external_id.clone(),
            placed_at: input.placed_at.utc(),
            total_price: input.total_price.as_decimal(),
            currency: input.currency.clone(),
            financial_status: input.financial_status.clone(),
            fulfillment_status: input.fulfillment_status.clone(),
            customer: CustomerRef::after(&input.customer, current.map(|order| order.customer)),
            line_items: input
                .line_items
                .clone()
                .unwrap_or_else(FreeJson::empty_array),
            tags: input.tags.clone().unwrap_or_default(),
            metadata: input
                .metadata
                .clone()
                .unwrap_or_else(FreeJson::empty_object),
        }
    }

    fn patch(patch: &OrderPatch, current: &Content) -> Content {
        let mut content = current.clone();
        patch.financial_status.apply(&mut content.financial_status);
        patch
            .fulfillment_status
            .apply(&mut content.fulfillment_status);
        patch.tags.apply_or(&mut content.tags, Tags::default);
        patch
            .metadata
            .apply_or(&mut content.metadata, FreeJson::empty_object);
        content
    }

    fn brings_companion(input: &OrderInput, current: Option<&Content>) -> bool {
        let current = current.map(|content| content.customer);
        CustomerRef::after(&input.customer, current).id.is_none()
    }

    fn needs_companion(content: &Content) -> bool {
        content.customer.id.is_none()
    }

    fn lock_order(a: &RowWrite<Content>, b: &RowWrite<Content>) -> Ordering {
        by_external_id::<Self>(a, b)
    }

    async fn load(
        connection: &mut Connection,
        keys: &[(i64, ExternalId)],
        locks: Locks<'_>,
        companions: &mut EmbeddedCustomers,
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        let (store_ids, external_ids) = key_columns(keys);
        if matches!(locks, Locks::All) {
            lock(connection, &store_ids, &external_ids).await?;
        }
        select(connection, &store_ids, &external_ids, companions).await
    }

    async fn customer_id(
        state: &State,
        store_id: i64,
        external_id: &str,
    ) -> Result<Option<Uuid>, Error> {
        customers::id_of(state, store_id, external_id).await
    }

    async fn insert(connection: &mut Connection, rows: &[RowWrite<Content>]) -> sqlx::Result<u64> {
        insert(connection, rows).await
    }

    async fn change(
        connection: &mut Connection,
        rows: &[RowWrite<Content>],
        customers: &EmbeddedCustomers,
        events: &[&Event],
    ) -> sqlx::Result<()> {
        change(connection, rows, customers, events).await
    }

    async fn page(
        connection: &mut Connection,
        wanted: &Wanted,
        limit: i64,
        companions: &mut EmbeddedCustomers,
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        let store_id = wanted.store_id;
        let range = (wanted.after, wanted.through, limit);
        let external_ids = match wanted.customer_id {
            Some(customer_id) => {
                page_of_customer(&mut *connection, store_id, customer_id, range).await?
            }
            None => page(&mut *connection, store_id, range).await?,
        };
        let keys: Vec<&str> = external_ids.iter().map(String::as_str).collect();
        let store_ids = vec![store_id; keys.len()];
        let mut records = select(connection, &store_ids, &keys, companions).await?;
        records.sort_by_key(|record| record.id);
        Ok(records)
    }

    found_by_id!("orders");

    async fn extras(
        connection: &mut Connection,
        records: &[Arc<Record<Content>>],
        companions: &EmbeddedCustomers,
    ) -> sqlx::Result<Vec<Carried>> {
        embedded::carried::<Self>(connection, records, companions).await
    }

    fn answer(record: Record<Content>, customer: Carried) -> OrderAnswer {
        let content = record.content;
        OrderAnswer {
            id: Some(record.id),
            store_id: record.store_id,
            external_id: content.external_id,
            placed_at: Timestamp::from_utc(content.placed_at),
            total_price: Money::from_decimal(content.total_price),
            currency: content.currency,
            financial_status: content.financial_status,
            fulfillment_status: content.fulfillment_status,
            customer: customer.into(),
            line_items: content.line_items,
            tags: content.tags,
            metadata: content.metadata,
            version: record.version,
            source_updated_at: record.source_updated_at.map(Timestamp::from_utc),
            created_at: Timestamp::from_utc(record.created_at),
            updated_at: Timestamp::from_utc(record.updated_at),
        }
    }

    fn hide_ids(answer: &mut OrderAnswer, record_is_new: bool) {
        if record_is_new {
            answer.id = None;
        }
        answer.customer.hide_new_id();
    }

    fn examples() -> [serde_json::Value; 2] {
        [
            json!({
                "external_id": "A-1001",
                "placed_at": "2026-01-15T09:30:00Z",
                "total_price": "49.90",
                "currency": "EUR",
                "financial_status": "paid",
                "fulfillment_status": "unfulfilled",
                "customer": {"external_id": "C-1001", "phone": "+33612345678", "first_name": "Camille"},
                "line_items": [{"sku": "TEA-EARL", "title": "Earl Grey", "quantity": 2, "price": "24.95"}],
                "tags": ["web"],
                "metadata": {"channel": "shop"},
                "source_updated_at": "2026-01-15T09:31:00Z"
            }),
            json!({
                "external_id": "A-1002",
                "placed_at": "2026-01-16T10:00:00Z",
                "total_price": "12.0125",
                "currency": "GBP",
                "financial_status": "refunded",
                "fulfillment_status": "fulfilled",
                "customer": {"external_id": "C-1002", "phone": "+447700900123", "first_name": "Alex"},
                "line_items": [{"sku": "MUG", "title": "Mug", "quantity": 1, "price": "12.0125"}],
                "tags": ["till", "gift"],
                "metadata": {"channel": "till", "desk": 4},
                "source_updated_at": "2026-01-16T10:01:00Z"
            }),
        ]
    }

    fn patch_example() -> Option<serde_json::Value> {
        Some(json!({
            "financial_status": "refunded",
            "fulfillment_status": "returned",
            "tags": ["web", "returned"],
            "metadata": {"channel": "shop", "reason": "size"}
        }))
    }
}

/// The stored records; customers get to know those that they refer to.
async fn select(
    connection: &mut Connection,
    store_ids: &[i64],
    external_ids: &[&str],
    customers: &mut EmbeddedCustomers,
) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
    let rows = select_with_customers!(
        connection,
        "orders",
        r#"
            carrier.store_id, carrier.id, carrier.external_id, carrier.placed_at,
            carrier.total_price, carrier.currency, carrier.financial_status,
            carrier.fulfillment_status, carrier.customer_id, carrier.customer_digest,
            carrier.line_items::text as "line_items!", carrier.tags as "tags: Json<Vec<String>>",
            carrier.metadata::text as "metadata!", carrier.version, carrier.source_updated_at,
            carrier.created_at, carrier.updated_at,
            carrier.ctid as "place!: Place""#,
        store_ids,
        external_ids,
    );
    let records = rows.into_iter().map(|row| {
        customers.know(customer_of_row!(row));
        Arc::new(Record {
            store_id: row.store_id,
            id: row.id,
            version: row.version,
            source_updated_at: row.source_updated_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
            place: Some(row.place),
            content: Content {
                external_id: ExternalId::from_stored(row.external_id),
                placed_at: row.placed_at,
                total_price: row.total_price,
                currency: row.currency.map(Currency::from_stored),
                financial_status: row.financial_status,
                fulfillment_status: row.fulfillment_status,
                customer: CustomerRef::stored(row.customer_id, row.customer_digest),
                line_items: FreeJson::from_stored(row.line_items),
                tags: Tags::from_stored(row.tags.0),
                metadata: FreeJson::from_stored(row.metadata),
            },
        })
    });
    Ok(records.collect())
}

async fn lock(
    connection: &mut Connection,
    store_ids: &[i64],
    external_ids: &[&str],
) -> sqlx::Result<()> {
    sqlx::query!(
        "select o.id
        from unnest($1::bigint[], $2::text[]) as wanted (store_id, external_id)
        join orders o on o.store_id = wanted.store_id and o.external_id = wanted.external_id
        order by o.store_id, o.external_id
        for no key update of o",
        store_ids,
        external_ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

async fn page(
    connection: &mut Connection,
    store_id: i64,
    (after, through, limit): (Uuid, Uuid, i64),
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select external_id
        from orders
        where store_id = $1
            and id > $2
            and id <= $3
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

async fn page_of_customer(
    connection: &mut Connection,
    store_id: i64,
    customer_id: Uuid,
    (after, through, limit): (Uuid, Uuid, i64),
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "select external_id
        from orders
        where store_id = $1
            and customer_id = $2
            and id > $3
            and id <= $4
        order by id
        limit $5",
        store_id,
        customer_id,
        after,
        through,
        limit,
    )
    .fetch_all(connection)
    .await
}

/// The contents of rows, column by column.
struct Columns<'a> {
    external_ids: Vec<&'a str>,
    placed: Vec<DateTime<Utc>>,
    totals: Vec<Decimal>,
    currencies: Vec<Option<&'a str>>,
    financial: Vec<Option<&'a str>>,
    fulfillment: Vec<Option<&'a str>>,
    customers: Vec<Option<Uuid>>,
    digests: Vec<Option<&'a [u8]>>,
    line_items: Vec<Option<&'a str>>,
    tags: Vec<Option<String>>,
    metadata: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(rows: &'a [RowWrite<Content>]) -> Self {
        let contents = || rows.iter().map(|row| &row.record.content);
        Self {
            external_ids: contents().map(|c| c.external_id.as_str()).collect(),
            placed: contents().map(|c| c.placed_at).collect(),
            totals: contents().map(|c| c.total_price).collect(),
            currencies: contents()
                .map(|c| c.currency.as_ref().map(Currency::as_str))
                .collect(),
            financial: contents().map(|c| c.financial_status.as_deref()).collect(),
            fulfillment: contents()
                .map(|c| c.fulfillment_status.as_deref())
                .collect(),
            customers: contents().map(|c| c.customer.id).collect(),
            digests: contents()
                .map(|c| c.customer.digest.as_ref().map(<[u8; 32]>::as_slice))
                .collect(),
            line_items: rows
                .iter()
                .map(|row| row.news(|c| c.line_items.as_str()))
                .collect(),
            tags: rows
                .iter()
                .map(|row| row.news(|c| &c.tags).map(Tags::to_json))
                .collect(),
            metadata: rows
                .iter()
                .map(|row| row.news(|c| c.metadata.as_str()))
                .collect(),
        }
    }
}

/// Makes orders; tells how many, for a key may be taken meanwhile.
async fn insert(connection: &mut Connection, rows: &[RowWrite<Content>]) -> sqlx::Result<u64> {
    let (stamps, columns) = (Stamps::of(rows), Columns::of(rows));
    let done = sqlx::query!(
        "insert into orders (
            store_id, id, external_id, placed_at, total_price, currency, financial_status,
            fulfillment_status, customer_id, customer_digest, line_items, tags, metadata, version,
            replaced_version, source_updated_at, created_at, updated_at
        )
        select
            store_id, id, external_id, placed_at, total_price, currency, financial_status,
            fulfillment_status, customer_id, customer_digest, line_items::jsonb, tags::jsonb,
            metadata::jsonb, version, replaced_version, source_updated_at, created_at, updated_at
        from (
            select
                unnest($1::bigint[]) as store_id,
                unnest($2::uuid[]) as id,
                unnest($3::text[]) as external_id,
                unnest($4::timestamptz[]) as placed_at,
                unnest($5::numeric[]) as total_price,
                unnest($6::text[]) as currency,
                unnest($7::text[]) as financial_status,
                unnest($8::text[]) as fulfillment_status,
                unnest($9::uuid[]) as customer_id,
                unnest($10::bytea[]) as customer_digest,
                unnest($11::text[]) as line_items,
                unnest($12::text[]) as tags,
                unnest($13::text[]) as metadata,
                unnest($14::bigint[]) as version,
                unnest($15::bigint[]) as replaced_version,
                unnest($16::timestamptz[]) as source_updated_at,
                unnest($17::timestamptz[]) as created_at,
                unnest($18::timestamptz[]) as updated_at
        ) as row
        on conflict (external_id, store_id) do nothing",
        &stamps.store_ids,
        &stamps.ids,
        &columns.external_ids as &[&str],
        &columns.placed,
        &columns.totals,
        &columns.currencies as &[Option<&str>],
        &columns.financial as &[Option<&str>],
        &columns.fulfillment as &[Option<&str>],
        &columns.customers as &[Option<Uuid>],
        &columns.digests as &[Option<&[u8]>],
        &columns.line_items as &[Option<&str>],
        &columns.tags as &[Option<String>],
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

/// Changes orders and the customers that they carry along, all of them provided that the stored
/// versions are still those that they replace.
async fn change(
    connection: &mut Connection,
    rows: &[RowWrite<Content>],
    customers: &EmbeddedCustomers,
    events: &[&Event],
) -> sqlx::Result<()> {
    let (stamps, columns) = (Stamps::of(rows), Columns::of(rows));
    let customers = customers.changed();
    write_with_customers!(
        connection,
        &customers,
        events,
        [", changed as (
                update orders o
                set placed_at = row.placed_at,
                    total_price = row.total_price,
                    currency = row.currency,
                    financial_status = row.financial_status,
                    fulfillment_status = row.fulfillment_status,
                    customer_id = row.customer_id,
                    -- an erasure may have cleared it since it was read
                    customer_digest = case
                        when o.customer_digest is null and o.customer_id = row.customer_id then null
                        else row.customer_digest
                    end,
                    line_items = coalesce(row.line_items::jsonb, o.line_items),
                    tags = coalesce(row.tags::jsonb, o.tags),
                    metadata = coalesce(row.metadata::jsonb, o.metadata),
                    version = row.version,
                    replaced_version = row.replaced_version,
                    source_updated_at = row.source_updated_at,
                    updated_at = row.updated_at
                from (
                    select
                        unnest($27::bigint[]) as store_id,
                        unnest($28::text[]) as external_id,
                        unnest($29::timestamptz[]) as placed_at,
                        unnest($30::numeric[]) as total_price,
                        unnest($31::text[]) as currency,
                        unnest($32::text[]) as financial_status,
                        unnest($33::text[]) as fulfillment_status,
                        unnest($34::uuid[]) as customer_id,
                        unnest($35::bytea[]) as customer_digest,
                        unnest($36::text[]) as line_items,
                        unnest($37::text[]) as tags,
                        unnest($38::text[]) as metadata,
                        unnest($39::bigint[]) as version,
                        unnest($40::bigint[]) as replaced_version,
                        unnest($41::timestamptz[]) as source_updated_at,
                        unnest($42::timestamptz[]) as updated_at,
                        unnest($43::timestamptz[]) as replaced_source,
                        unnest($44::tid[]) as place
                ) as row
                where o.ctid = row.place
                    and o.store_id = row.store_id
                    and o.external_id = row.external_id
                    and o.version = row.replaced_version
                    and o.source_updated_at is not distinct from row.replaced_source
                returning 1
            )"],
        if ["(select count(*) from changed) = cardinality($27::bigint[])"],
        &stamps.store_ids,
        &columns.external_ids as &[&str],
        &columns.placed,
        &columns.totals,
        &columns.currencies as &[Option<&str>],
        &columns.financial as &[Option<&str>],
        &columns.fulfillment as &[Option<&str>],
        &columns.customers as &[Option<Uuid>],
        &columns.digests as &[Option<&[u8]>],
        &columns.line_items as &[Option<&str>],
        &columns.tags as &[Option<String>],
        &columns.metadata as &[Option<&str>],
        &stamps.versions,
        &stamps.replaced,
        &stamps.sources as &[Option<DateTime<Utc>>],
        &stamps.updated,
        &stamps.replaced_sources as &[Option<DateTime<Utc>>],
        &stamps.places as &[Option<Place>],
    )
    .await?;
    Ok(())
}

/// Clears the digests of what orders carried of an erased customer.
///
/// # Errors
/// When the database fails.
pub async fn forget_customer(
    connection: &mut Connection,
    store_id: i64,
    customer_id: Uuid,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update orders
        set customer_digest = null
        where store_id = $1 and customer_id = $2 and customer_digest is not null",
        store_id,
        customer_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}
