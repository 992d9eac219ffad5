create table shipments (
    store_id          bigint      not null,
    id                uuid        not null,
    external_id       text        collate "C" not null,
    -- by natural key: the order may arrive later
    order_external_id text        collate "C" not null,
    tracking_number   text,
    tracking_url      text,
    carrier           text,
    status            text        not null,
    metadata          jsonb       not null,
    version           bigint      not null,
    replaced_version  bigint      not null,
    source_updated_at timestamptz,
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    constraint shipments_pkey primary key (store_id, id),
    -- The selective column first: while a table is new and the planner knows nothing of it, an index
    -- that begins with store_id looks as good for any look-up, and a plan that walks a whole store
    -- would be kept.
    constraint shipments_external_id_key unique (external_id, store_id),
    constraint shipments_status_check
        check (status in ('pending', 'in_transit', 'delivered', 'failed', 'returned'))
) with (fillfactor = 85);
