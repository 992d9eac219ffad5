-- Work that a transaction leaves to be done after its commit. A worker leases rows by time, works
-- outside any transaction, and settles.
create table outbox (
    store_id    bigint      not null,
    -- of what is to be done: a message's id, an inbound item's
    id          uuid        not null,
    -- a hash of the store, so that sweepers can share the stores (see outbox/mod.rs)
    bucket      smallint    not null,
    kind        text        not null,
    -- waiting; dead: given up, can be tried again by hand; unknown: may have been done
    state       text        not null default 'waiting',
    due_at      timestamptz not null,
    lease_id    uuid,
    lease_until timestamptz,
    -- what can't be repeated has begun: once its lease has run out, nobody knows what came of it
    begun_at    timestamptz,
    attempt     integer     not null default 0,
    -- why it has not been done yet
    error_code  text,
    created_at  timestamptz not null,
    -- The selective column first: a queue is empty when the planner looks, and a plan that walks all of
    -- a store's rows would be kept for when it is full.
    constraint outbox_pkey primary key (id, store_id),
    constraint outbox_state_check check (state in ('waiting', 'dead', 'unknown'))
) with (fillfactor = 70);

create index outbox_due on outbox (bucket, kind, due_at) where state = 'waiting';
create index outbox_ended on outbox (store_id, created_at) where state <> 'waiting';
