create table exports (
    store_id            bigint      not null,
    id                  uuid        not null,
    external_id         text        collate "C" not null,
    status              text        not null,
    -- why it pauses, where nobody asked for it: gone (the receiver answered 410)
    paused_code         text,
    -- the resources' paths
    resources           jsonb       not null,
    mode                text        not null,
    url                 text        not null,
    method              text        not null,
    -- a JSON object, sealed under KEYFOLD_SECRET_KEY; null: none
    headers             bytea,
    header_names        jsonb       not null,
    -- sealed under KEYFOLD_SECRET_KEY
    signing_secret      bytea       not null,
    idempotency_enabled boolean     not null,
    strategy            text        not null,
    -- null: the key is kept inside
    idempotency_header  text,
    resend_on_change    boolean     not null,
    retention_days      integer     not null,
    -- events up to here were there when it became live
    from_position       bigint      not null,
    -- the receiver asked for no calls before
    held_until          timestamptz,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    constraint exports_pkey primary key (store_id, id),
    constraint exports_external_id_key unique (external_id, store_id),
    constraint exports_status_check check (status in ('active', 'paused')),
    constraint exports_mode_check check (mode in ('live', 'manual')),
    constraint exports_strategy_check check (strategy in ('primary_key', 'primary_key_and_hash'))
);

-- One row for each record that an export ever had to send: whether its present state is still to be
-- sent, and how often it was.
create table export_deliveries (
    store_id        bigint      not null,
    id              uuid        not null,
    export_id       uuid        not null,
    resource        text        not null,
    record_id       uuid        not null,
    -- of the record; null for customers: theirs is looked up at reading
    external_id     text        collate "C",
    -- idle; waiting for its (next) call; dead: given up, can be replayed
    state           text        not null,
    -- one more with each change, run or replay that wants it sent: what is settled while this grew
    -- is to be looked at again
    wanted          bigint      not null,
    -- calls that the receiver took
    successes       bigint      not null default 0,
    -- calls in a row that it did not
    attempt         integer     not null default 0,
    due_at          timestamptz not null,
    -- the customer was erased: that is what the receiver is told
    erased_at       timestamptz,
    -- a call was begun of which nobody noted that it was taken: the receiver may have another state
    -- than the one that the log has last
    unsure          boolean     not null default false,
    -- why the last call failed
    error_code      text,
    response_status smallint,
    -- the run that waits for it
    run_id          uuid,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    constraint export_deliveries_id_key unique (export_id, id, store_id),
    constraint export_deliveries_state_check check (state in ('idle', 'waiting', 'dead'))
) with (fillfactor = 70);

create index export_deliveries_due on export_deliveries (export_id, store_id, due_at)
    where state = 'waiting';
-- for those who look
create index export_deliveries_open on export_deliveries (export_id, store_id, id)
    where state <> 'idle';
-- The last one: among indexes that look as good for a table that is still empty, Postgres takes the
-- youngest, and keeps the plan.
alter table export_deliveries
    add constraint export_deliveries_pkey primary key (record_id, export_id, store_id);

-- One entry for each call that the receiver took.
create table export_log (
    store_id        bigint      not null,
    id              uuid        not null,
    export_id       uuid        not null,
    -- the how manieth call of the record that the receiver took: ids are made by processes whose
    -- clocks differ
    number          bigint      not null,
    -- the idempotency key of the call
    key             text        collate "C" not null,
    resource        text        not null,
    record_id       uuid        not null,
    -- as in export_deliveries
    external_id     text        collate "C",
    -- of what was sent, without version and times
    content_sha256  bytea       not null,
    response_status smallint    not null,
    run_id          uuid,
    sent_at         timestamptz not null,
    constraint export_log_pkey primary key (id, store_id)
);

create index export_log_export on export_log (export_id, store_id, id);
create index export_log_record on export_log (record_id, export_id, store_id, number);
-- the last one: see export_deliveries
alter table export_log add constraint export_log_key_key unique (key, export_id, store_id);

create table export_runs (
    store_id    bigint      not null,
    id          uuid        not null,
    export_id   uuid        not null,
    -- running; completed: every record was called for, or skipped
    status      text        not null,
    -- one more with each retry
    attempt     integer     not null,
    -- the export's resources when the attempt began
    resources   jsonb       not null,
    -- what is walked now: the place among these resources, and the last record
    walk_place  integer     not null,
    walk_after  uuid        not null,
    walked      boolean     not null,
    -- records walked so far in this attempt
    seen        bigint      not null,
    -- as far as was counted or seen; exact when walked
    total       bigint      not null,
    sent        bigint      not null,
    skipped     bigint      not null,
    failed      bigint      not null,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    finished_at timestamptz,
    constraint export_runs_pkey primary key (id, store_id),
    constraint export_runs_status_check check (status in ('running', 'completed'))
) with (fillfactor = 70);

create unique index export_runs_running_key on export_runs (export_id, store_id)
    where status = 'running';
create index export_runs_export on export_runs (export_id, store_id, id);

-- What a run did with each record.
create table export_results (
    store_id    bigint      not null,
    run_id      uuid        not null,
    record_id   uuid        not null,
    resource    text        not null,
    -- as in export_deliveries
    external_id text        collate "C",
    -- of the run: what belongs to an earlier one does not count any more
    attempt     integer     not null,
    -- pending, sent, skipped or failed
    outcome     text        not null,
    error_code  text,
    key         text        collate "C",
    updated_at  timestamptz not null,
    constraint export_results_pkey primary key (run_id, record_id, store_id)
) with (fillfactor = 70);

-- for erasures; a part, so that nothing else is ever read by it
create index export_results_person on export_results (record_id, store_id)
    where resource = 'customers';

-- Exports that were deleted and whose rows are still to be.
create table export_leftovers (
    store_id   bigint      not null,
    export_id  uuid        not null,
    deleted_at timestamptz not null,
    constraint export_leftovers_pkey primary key (store_id, export_id)
);
