create table checkouts (
    store_id          bigint         not null,
    id                uuid           not null,
    external_id       text           collate "C" not null,
    abandoned_at      timestamptz    not null,
    total_price       numeric(19, 4) not null,
    currency          text,
    recovery_url      text,
    status            text           not null,
    -- no foreign key, as in orders
    customer_id       uuid           not null,
    customer_digest   bytea,
    line_items        jsonb          not null,
    tags              jsonb          not null,
    metadata          jsonb          not null,
    version           bigint         not null,
    replaced_version  bigint         not null,
    source_updated_at timestamptz,
    created_at        timestamptz    not null,
    updated_at        timestamptz    not null,
    constraint checkouts_pkey primary key (store_id, id),
    -- The selective column first: while a table is new and the planner knows nothing of it, an index
    -- that begins with store_id looks as good for any look-up, and a plan that walks a whole store
    -- would be kept.
    constraint checkouts_external_id_key unique (external_id, store_id),
    constraint checkouts_status_check
        check (status in ('active', 'abandoned', 'recovered', 'completed', 'expired'))
) with (fillfactor = 85);

create index checkouts_customer on checkouts (customer_id, store_id, id);

-- Line items are most of a row; the default method takes several times the processor for about the
-- same size. Not every Postgres is built with lz4.
do $$
begin
    alter table checkouts alter column line_items set compression lz4;
exception
    when feature_not_supported then null;
end
$$;
