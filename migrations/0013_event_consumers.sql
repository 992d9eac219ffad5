-- Who inside follows a store's events, and how far they have come. A store without automations and
-- exports has no row here, and nobody looks at its events.
create table event_consumers (
    store_id bigint not null,
    -- automations, exports
    consumer text   not null,
    -- events up to here have had their effects
    position bigint not null,
    constraint event_consumers_pkey primary key (store_id, consumer)
);
