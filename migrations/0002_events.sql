-- What changed, written in the transaction that changed it.

create table events (
    store_id    bigint      not null,
    id          uuid        not null,
    -- null until a reader numbers it: a number given before the commit could be skipped by a reader
    -- that was faster than the commit
    position    bigint,
    -- order.created, customer.erased …
    type        text        not null,
    -- the resource's path: orders, customers …
    resource    text        not null,
    record_id   uuid        not null,
    -- null for customers: theirs is looked up at reading, so that an erasure leaves nothing here
    external_id text        collate "C",
    version     bigint      not null,
    -- the record's updated_at, which grows with every version whatever the clocks do
    created_at  timestamptz not null,
    constraint events_pkey primary key (store_id, id)
);

create unique index events_position_key on events (store_id, position) where position is not null;
create index events_unnumbered on events (store_id, created_at, version) where position is null;

-- One row a store: the lock under which its events are numbered.
create table event_feeds (
    store_id       bigint not null,
    last_position  bigint not null default 0,
    -- events up to here may have been deleted
    purged_through bigint not null default 0,
    constraint event_feeds_pkey primary key (store_id)
);
