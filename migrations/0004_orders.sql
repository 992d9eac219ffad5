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
    constraint orders_external_id_key unique (store_id, external_id)
) with (fillfactor = 85);

create index orders_customer on orders (store_id, customer_id, id);
