create table customers (
    store_id          bigint      not null,
    id                uuid        not null,
    external_id       text        collate "C",
    -- E.164; null only in the tombstone of an erased customer
    phone             text        collate "C",
    first_name        text,
    last_name         text,
    email             text,
    locale            text,
    tags              jsonb       not null,
    lifetime_value    bigint,
    orders_count      bigint,
    metadata          jsonb       not null,
    version           bigint      not null,
    -- the version that this one replaced, 0 for a new record: the comparand of every write
    replaced_version  bigint      not null,
    source_updated_at timestamptz,
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    erased_at         timestamptz,
    constraint customers_pkey primary key (store_id, id),
    -- The selective column first: while a table is new and the planner knows nothing of it, an index
    -- that begins with store_id looks as good for any look-up, and a plan that walks a whole store
    -- would be kept.
    constraint customers_external_id_key unique (external_id, store_id),
    constraint customers_phone_present check (phone is not null or erased_at is not null)
) with (fillfactor = 85);

-- At most one record without external id per phone.
create unique index customers_phone_alone_key on customers (phone, store_id) where external_id is null;
create index customers_phone on customers (phone, store_id, id);

-- The lock of a phone. The unique indexes alone can't hold the identity rules: a record that adopts
-- an external id leaves the partial index while another writer waits for it. Its rows live and die
-- inside one transaction: whoever inserts the same phone waits for its end, and nothing is left.
create table customer_phones (
    store_id bigint not null,
    phone    text   collate "C" not null,
    constraint customer_phones_pkey primary key (store_id, phone)
);
