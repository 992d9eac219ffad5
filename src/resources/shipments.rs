//! Shipments: parcels of an order that may itself arrive later.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::StoreAccess;
use crate::database::Connection;
use crate::engine::events::{Event, write_with_events};
use crate::engine::group_commit::LaneKey;
use crate::engine::place::Place;
use crate::engine::read::{ByExternalId, Wanted, by_external_id, found_by_id, key_columns};
use crate::engine::record::{Record, RowWrite, Stamps};
use crate::engine::{Alone, Locks, PersonAt, Resource};
use crate::values::{
    ExternalId, Fields, FreeJson, FreeObject, HttpUrl, METADATA_BYTES, Text, Timestamp,
    TimestampInput, choice, text,
};

/// The resource.
pub struct Shipment;

/// Where a parcel can be.
pub const STATUSES: &[&str] = &["pending", "in_transit", "delivered", "failed", "returned"];

/// What a shipment is unless the caller says otherwise.
const DEFAULT_STATUS: &str = "pending";

/// Where a shipment stands.
#[derive(Clone, Copy, Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum ShipmentStatus {
    /// Not handed over yet.
    Pending,
    /// On its way.
    InTransit,
    /// Arrived.
    Delivered,
    /// Lost, or could not be delivered.
    Failed,
    /// Came back.
    Returned,
}

/// What is stored of a shipment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    external_id: ExternalId,
    order_external_id: ExternalId,
    tracking_number: Option<String>,
    tracking_url: Option<String>,
    carrier: Option<String>,
    status: String,
    metadata: FreeJson,
}

/// A shipment as the caller pushes it.
#[derive(Debug, ToSchema)]
pub struct ShipmentInput {
    /// The caller's own id of the shipment: its natural key in the store.
    pub external_id: ExternalId,
    /// `external_id` of the order, which may arrive later.
    pub order_external_id: ExternalId,
    /// The carrier's number.
    #[schema(value_type = Option<Text<255>>)]
    pub tracking_number: Option<String>,
    /// Where the parcel can be followed.
    pub tracking_url: Option<HttpUrl>,
    /// Who carries it.
    #[schema(value_type = Option<Text<255>>)]
    pub carrier: Option<String>,
    /// Where the parcel is; `pending` if left out or null.
    #[schema(value_type = Option<ShipmentStatus>)]
    pub status: Option<&'static str>,
    /// Free data, at most 64 KiB.
    #[schema(value_type = Option<FreeObject>)]
    pub metadata: Option<FreeJson>,
    /// When the caller's own system changed the record; an older push than the stored one is stale.
    #[schema(value_type = Option<TimestampInput>)]
    pub source_updated_at: Option<Timestamp>,
}

/// A shipment as it is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Shipment)]
pub struct ShipmentAnswer {
    /// UUIDv7; null only in the answer of a dry run that would create it.
    #[schema(required)]
    id: Option<Uuid>,
    /// The store.
    store_id: i64,
    external_id: ExternalId,
    order_external_id: ExternalId,
    /// `id` of the order; null until it has arrived.
    #[schema(required)]
    order_id: Option<Uuid>,
    #[schema(required)]
    tracking_number: Option<String>,
    #[schema(required)]
    tracking_url: Option<String>,
    #[schema(required)]
    carrier: Option<String>,
    #[schema(value_type = ShipmentStatus)]
    status: String,
    #[schema(value_type = FreeObject)]
    metadata: FreeJson,
    /// Grows by one with each change.
    version: i64,
    #[schema(required)]
    source_updated_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Resource for Shipment {
    const SINGULAR: &'static str = "shipment";
    const PATH: &'static str = "shipments";
    const MUTABLE: &'static [&'static str] = &[];
    const IMMUTABLE: &'static [&'static str] = &[];
    const HAS_CUSTOMER: bool = false;
    const PERSON: PersonAt = PersonAt::Elsewhere {
        resource: "orders",
        member: "order_external_id",
    };

    type Key = ExternalId;
    type Input = ShipmentInput;
    type Patch = ();
    type Content = Content;
    type Index = ByExternalId<Self>;
    type Companions = Alone;
    type Extra = Option<Uuid>;
    type Answer = ShipmentAnswer;

    fn read_input(fields: &mut Fields<'_, '_>, _: &StoreAccess) -> Option<ShipmentInput> {
        let external_id = fields.required("external_id", ExternalId::read);
        let order_external_id = fields.required("order_external_id", ExternalId::read);
        let tracking_number = fields.optional("tracking_number", text(255));
        let tracking_url = fields.optional("tracking_url", HttpUrl::read);
        let carrier = fields.optional("carrier", text(255));
        let status = fields.optional("status", choice(STATUSES));
        let metadata = fields.optional("metadata", |node| FreeJson::object(node, METADATA_BYTES));
        let source_updated_at = fields.optional("source_updated_at", Timestamp::read);
        Some(ShipmentInput {
            external_id: external_id?,
            order_external_id: order_external_id?,
            tracking_number,
            tracking_url,
            carrier,
            status,
            metadata,
            source_updated_at,
        })
    }

    fn read_patch(_: &mut Fields<'_, '_>) -> Option<()> {
        None
    }

    fn source_updated_at(input: &ShipmentInput) -> Option<DateTime<Utc>> {
        input.source_updated_at.map(Timestamp::utc)
    }

    fn key(input: &ShipmentInput) -> ExternalId {
        input.external_id.clone()
    }

    fn lane_keys(store_id: i64, key: &ExternalId) -> Vec<LaneKey> {
        vec![LaneKey::of(store_id, Self::PATH, key.as_str())]
    }

    fn path_keys(segment: &str) -> Vec<ExternalId> {
        ExternalId::parse(segment).ok().into_iter().collect()
    }

    fn external_id(content: &Content) -> Option<&str> {
        Some(content.external_id.as_str())
    }

    fn put(input: &ShipmentInput, _: Option<&Content>) -> Content {
        Content {
            external_id: input.external_id.clone(),
            order_external_id: input.order_external_id.clone(),
            tracking_number: input.tracking_number.clone(),
            tracking_url: input
                .tracking_url
                .as_ref()
                .map(|url| url.as_str().to_owned()),
            carrier: input.carrier.clone(),
            status: input.status.unwrap_or(DEFAULT_STATUS).to_owned(),
            metadata: input
                .metadata
                .clone()
                .unwrap_or_else(FreeJson::empty_object),
        }
    }

    fn patch((): &(), current: &Content) -> Content {
        current.clone()
    }

    fn lock_order(a: &RowWrite<Content>, b: &RowWrite<Content>) -> Ordering {
        by_external_id::<Self>(a, b)
    }

    async fn load(
        connection: &mut Connection,
        keys: &[(i64, ExternalId)],
        locks: Locks<'_>,
        _: &mut Alone,
    ) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
        let (store_ids, external_ids) = key_columns(keys);
        if matches!(locks, Locks::All) {
            lock(connection, &store_ids, &external_ids).await?;
        }
        select(connection, &store_ids, &external_ids).await
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
        let keys = sqlx::query_scalar!(
            "select external_id
            from shipments
            where store_id = $1
                and id > $2
                and id <= $3
            order by id
            limit $4",
            wanted.store_id,
            wanted.after,
            wanted.through,
            limit,
        )
        .fetch_all(&mut *connection)
        .await?;
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut records = select(connection, &vec![wanted.store_id; keys.len()], &keys).await?;
        records.sort_by_key(|record| record.id);
        Ok(records)
    }

    found_by_id!("shipments");

    async fn extras(
        connection: &mut Connection,
        records: &[Arc<Record<Content>>],
        _: &Alone,
    ) -> sqlx::Result<Vec<Option<Uuid>>> {
        order_ids(connection, records).await
    }

    fn answer(record: Record<Content>, order_id: Option<Uuid>) -> ShipmentAnswer {
        let content = record.content;
        ShipmentAnswer {
            id: Some(record.id),
            store_id: record.store_id,
            external_id: content.external_id,
            order_external_id: content.order_external_id,
            order_id,
            tracking_number: content.tracking_number,
            tracking_url: content.tracking_url,
            carrier: content.carrier,
            status: content.status,
            metadata: content.metadata,
            version: record.version,
            source_updated_at: record.source_updated_at.map(Timestamp::from_utc),
            created_at: Timestamp::from_utc(record.created_at),
            updated_at: Timestamp::from_utc(record.updated_at),
        }
    }

    fn hide_ids(answer: &mut ShipmentAnswer, record_is_new: bool) {
        if record_is_new {
            answer.id = None;
        }
    }

    fn examples() -> [serde_json::Value; 2] {
        [
            json!({
                "external_id": "S-1001",
                "order_external_id": "A-1001",
                "tracking_number": "6A12345678901",
                "tracking_url": "https://track.example.com/6A12345678901",
                "carrier": "Colissimo",
                "status": "in_transit",
                "metadata": {"parcel": 1},
                "source_updated_at": "2026-01-17T08:00:00Z"
            }),
            json!({
                "external_id": "S-1002",
                "order_external_id": "A-1002",
                "tracking_number": "RM987654321GB",
                "tracking_url": "https://track.example.com/RM987654321GB",
                "carrier": "Royal Mail",
                "status": "delivered",
                "metadata": {"parcel": 2, "signed_by": "neighbour"},
                "source_updated_at": "2026-01-18T08:00:00Z"
            }),
        ]
    }

    fn patch_example() -> Option<serde_json::Value> {
        None
    }
}

/// The orders of shipments, where they have arrived.
async fn order_ids(
    connection: &mut Connection,
    records: &[Arc<Record<Content>>],
) -> sqlx::Result<Vec<Option<Uuid>>> {
    let (store_ids, external_ids): (Vec<i64>, Vec<&str>) = records
        .iter()
        .map(|record| (record.store_id, record.content.order_external_id.as_str()))
        .unzip();
    let rows = sqlx::query!(
        "select o.store_id, o.external_id, o.id
        from unnest($1::bigint[], $2::text[]) as wanted (store_id, external_id)
        join orders o on o.store_id = wanted.store_id and o.external_id = wanted.external_id",
        &store_ids,
        &external_ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    let found: HashMap<(i64, String), Uuid> = rows
        .into_iter()
        .map(|row| ((row.store_id, row.external_id), row.id))
        .collect();
    let wanted = store_ids.iter().zip(external_ids);
    Ok(wanted
        .map(|(store_id, key)| found.get(&(*store_id, key.to_owned())).copied())
        .collect())
}

/// A row as the statement below gives it.
struct Row {
    store_id: i64,
    id: Uuid,
    external_id: String,
    order_external_id: String,
    tracking_number: Option<String>,
    tracking_url: Option<String>,
    carrier: Option<String>,
    status: String,
    metadata: String,
    version: i64,
    source_updated_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    place: Place,
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
                external_id: ExternalId::from_stored(row.external_id),
                order_external_id: ExternalId::from_stored(row.order_external_id),
                tracking_number: row.tracking_number,
                tracking_url: row.tracking_url,
                carrier: row.carrier,
                status: row.status,
                metadata: FreeJson::from_stored(row.metadata),
            },
        }
    }
}

async fn select(
    connection: &mut Connection,
    store_ids: &[i64],
    external_ids: &[&str],
) -> sqlx::Result<Vec<Arc<Record<Content>>>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select
            s.store_id, s.id, s.external_id, s.order_external_id, s.tracking_number,
            s.tracking_url, s.carrier, s.status, s.metadata::text as "metadata!", s.version,
            s.source_updated_at, s.created_at, s.updated_at, s.ctid as "place!: Place"
        from unnest($1::bigint[], $2::text[]) as wanted (store_id, external_id)
        join shipments s on s.store_id = wanted.store_id and s.external_id = wanted.external_id"#,
        store_ids,
        external_ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| Arc::new(row.into())).collect())
}

async fn lock(
    connection: &mut Connection,
    store_ids: &[i64],
    external_ids: &[&str],
) -> sqlx::Result<()> {
    sqlx::query!(
        "select s.id
        from unnest($1::bigint[], $2::text[]) as wanted (store_id, external_id)
        join shipments s on s.store_id = wanted.store_id and s.external_id = wanted.external_id
        order by s.store_id, s.external_id
        for no key update of s",
        store_ids,
        external_ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// The contents of rows, column by column.
struct Columns<'a> {
    external_ids: Vec<&'a str>,
    orders: Vec<&'a str>,
    numbers: Vec<Option<&'a str>>,
    urls: Vec<Option<&'a str>>,
    carriers: Vec<Option<&'a str>>,
    statuses: Vec<&'a str>,
    metadata: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(rows: &'a [RowWrite<Content>]) -> Self {
        let contents = || rows.iter().map(|row| &row.record.content);
        Self {
            external_ids: contents().map(|c| c.external_id.as_str()).collect(),
            orders: contents().map(|c| c.order_external_id.as_str()).collect(),
            numbers: contents().map(|c| c.tracking_number.as_deref()).collect(),
            urls: contents().map(|c| c.tracking_url.as_deref()).collect(),
            carriers: contents().map(|c| c.carrier.as_deref()).collect(),
            statuses: contents().map(|c| c.status.as_str()).collect(),
            metadata: rows
                .iter()
                .map(|row| row.news(|c| c.metadata.as_str()))
                .collect(),
        }
    }
}

/// Makes shipments; tells how many, for a key may be taken meanwhile.
async fn insert(connection: &mut Connection, rows: &[RowWrite<Content>]) -> sqlx::Result<u64> {
    let (stamps, columns) = (Stamps::of(rows), Columns::of(rows));
    let done = sqlx::query!(
        "insert into shipments (
            store_id, id, external_id, order_external_id, tracking_number, tracking_url, carrier,
            status, metadata, version, replaced_version, source_updated_at, created_at, updated_at
        )
        select
            store_id, id, external_id, order_external_id, tracking_number, tracking_url, carrier,
            status, metadata::jsonb, version, replaced_version, source_updated_at, created_at,
            updated_at
        from (
            select
                unnest($1::bigint[]) as store_id,
                unnest($2::uuid[]) as id,
                unnest($3::text[]) as external_id,
                unnest($4::text[]) as order_external_id,
                unnest($5::text[]) as tracking_number,
                unnest($6::text[]) as tracking_url,
                unnest($7::text[]) as carrier,
                unnest($8::text[]) as status,
                unnest($9::text[]) as metadata,
                unnest($10::bigint[]) as version,
                unnest($11::bigint[]) as replaced_version,
                unnest($12::timestamptz[]) as source_updated_at,
                unnest($13::timestamptz[]) as created_at,
                unnest($14::timestamptz[]) as updated_at
        ) as row
        on conflict (external_id, store_id) do nothing",
        &stamps.store_ids,
        &stamps.ids,
        &columns.external_ids as &[&str],
        &columns.orders as &[&str],
        &columns.numbers as &[Option<&str>],
        &columns.urls as &[Option<&str>],
        &columns.carriers as &[Option<&str>],
        &columns.statuses as &[&str],
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

/// Changes shipments, all of them provided that the stored versions are still those that they replace.
async fn change(
    connection: &mut Connection,
    rows: &[RowWrite<Content>],
    events: &[&Event],
) -> sqlx::Result<()> {
    let (stamps, columns) = (Stamps::of(rows), Columns::of(rows));
    write_with_events!(
        connection,
        events,
        [", changed as (
                update shipments s
                set order_external_id = row.order_external_id,
                    tracking_number = row.tracking_number,
                    tracking_url = row.tracking_url,
                    carrier = row.carrier,
                    status = row.status,
                    metadata = coalesce(row.metadata::jsonb, s.metadata),
                    version = row.version,
                    replaced_version = row.replaced_version,
                    source_updated_at = row.source_updated_at,
                    updated_at = row.updated_at
                from (
                    select
                        unnest($9::bigint[]) as store_id,
                        unnest($10::text[]) as external_id,
                        unnest($11::text[]) as order_external_id,
                        unnest($12::text[]) as tracking_number,
                        unnest($13::text[]) as tracking_url,
                        unnest($14::text[]) as carrier,
                        unnest($15::text[]) as status,
                        unnest($16::text[]) as metadata,
                        unnest($17::bigint[]) as version,
                        unnest($18::bigint[]) as replaced_version,
                        unnest($19::timestamptz[]) as source_updated_at,
                        unnest($20::timestamptz[]) as updated_at,
                        unnest($21::timestamptz[]) as replaced_source,
                        unnest($22::tid[]) as place
                ) as row
                where s.ctid = row.place
                    and s.store_id = row.store_id
                    and s.external_id = row.external_id
                    and s.version = row.replaced_version
                    and s.source_updated_at is not distinct from row.replaced_source
                returning 1
            )"],
        if ["(select count(*) from changed) = cardinality($9::bigint[])"],
        &stamps.store_ids,
        &columns.external_ids as &[&str],
        &columns.orders as &[&str],
        &columns.numbers as &[Option<&str>],
        &columns.urls as &[Option<&str>],
        &columns.carriers as &[Option<&str>],
        &columns.statuses as &[&str],
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
