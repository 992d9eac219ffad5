create table orders (
    store_id           bigint         not null,
    id                 uuid           not null,
    external_id        text           collate "C" not null,
    placed_at          timestamptz    not null,
    total_price        numeric(19, 4) not null,
    currency           text,
    financial_status   text,
    fulfillment_status text,
    -- No foreign key: customers are never deleted (an erased one leaves a tombstone), and its check
    -- would lock the customer's row after the order's, against the order of all other locks.
    customer_id        uuid           not null,
    -- of the customer as this order carried it; null once that customer has been erased
    customer_digest    bytea,
    -- jsonb on purpose: a table of their own cost a quarter of the write rate
    line_items         jsonb          not null,
    tags               jsonb          not null,
    metadata           jsonb          not null,
    version            bigint         not null,
    replaced_version   bigint         not null,
    source_updated_at  timestamptz,
    created_at         timestamptz    not null,
    updated_at         timestamptz    not null,
    constraint orders_pkey primary key (store_id, id),
    -- The selective column first: while a table is new and the planner knows nothing of it, an index
    -- that begins with store_id looks as good for any look-up, and a plan that walks a whole store
    -- would be kept.
    constraint orders_external_id_key unique (external_id, store_id)
) with (fillfactor = 85);

create index orders_customer on orders (customer_id, store_id, id);

-- Line items are most of a row; the default method takes several times the processor for about the
-- same size. Not every Postgres is built with lz4.
do $$
begin
    alter table orders alter column line_items set compression lz4;
exception
    when feature_not_supported then null;
end
$$;
