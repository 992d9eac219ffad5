\set n random(1, :orders)
\set item random(1, :items)
\set price random(10000000, 99999999)
\set step :step + 1
with customer as (
    insert into customers as c (
        store_id, id, external_id, phone, first_name, last_name, email, tags, lifetime_value,
        metadata, version, replaced_version, created_at, updated_at
    )
    values (
        :store, ('0' || to_hex(:step::bigint) || '000000000001' || to_hex(:client_id + 4096))::uuid,
        'c-' || :n, '+336' || lpad(:n::text, 8, '0'), 'Camille', 'Martin',
        'camille.' || :n || '@example.com', '[]', :step::bigint, '{}', 1, 0, now(), now()
    )
    on conflict (external_id, store_id) where external_id is not null do update set
        phone = excluded.phone, first_name = excluded.first_name, last_name = excluded.last_name,
        email = excluded.email, tags = excluded.tags, lifetime_value = excluded.lifetime_value,
        version = c.version + 1, replaced_version = c.version, updated_at = excluded.updated_at
    returning store_id, id, version, updated_at
),
written as (
    insert into orders as o (
        store_id, id, external_id, placed_at, total_price, currency, financial_status,
        fulfillment_status, customer_id, customer_digest, line_items, tags, metadata, version,
        replaced_version, created_at, updated_at
    )
    select
        :store, ('0' || to_hex(:step::bigint) || '000000000002' || to_hex(:client_id + 4096))::uuid,
        'o-' || :n, '2026-01-15T09:30:00Z', :price / 100.0, 'EUR', 'paid', 'unfulfilled',
        customer.id, '\x8d7ac8cbd2f4a8b4e5ce2a4d0d3b1d1a1f0a9c6a54a4e86b4d2f7c7a5b9e3f10'::bytea,
        __LINE_ITEMS__, '["web"]', '{}', 1, 0,
        now(), now()
    from customer
    on conflict (external_id, store_id) do update set
        placed_at = excluded.placed_at, total_price = excluded.total_price,
        currency = excluded.currency, financial_status = excluded.financial_status,
        fulfillment_status = excluded.fulfillment_status, customer_id = excluded.customer_id,
        customer_digest = excluded.customer_digest, line_items = excluded.line_items,
        tags = excluded.tags, metadata = excluded.metadata, version = o.version + 1,
        replaced_version = o.version, updated_at = excluded.updated_at
    returning store_id, id, external_id, version, updated_at
)
insert into events (store_id, id, type, resource, record_id, external_id, version, created_at)
select
    store_id, ('0' || to_hex(:step::bigint) || '000000000003' || to_hex(:client_id + 4096))::uuid,
    'customer.updated', 'customers', id, null, version, updated_at
from customer
union all
select
    store_id, ('0' || to_hex(:step::bigint) || '000000000004' || to_hex(:client_id + 4096))::uuid,
    'order.updated', 'orders', id, external_id, version, updated_at
from written;
