-- The control plane: small tables that map keys to teams and stores. On a cluster they live on the
-- coordinator as reference tables; only here are numeric ids made.

create table teams (
    team_id    bigint      generated always as identity primary key,
    name       text        not null,
    created_at timestamptz not null
);

create table stores (
    store_id        bigint      generated always as identity primary key,
    team_id         bigint      not null references teams (team_id),
    name            text        not null,
    -- the merchant's own name for the store
    external_id     text        collate "C",
    -- ISO 3166 letters: how national spellings of phone numbers are read
    default_country text,
    -- a paused store answers 404, as if it were not there
    status          text        not null default 'active',
    created_at      timestamptz not null,
    constraint stores_external_id_key unique (team_id, external_id),
    constraint stores_status_check check (status in ('active', 'paused'))
);

create table api_keys (
    key_id       uuid        primary key,
    team_id      bigint      not null references teams (team_id),
    -- null: every store of the team
    store_id     bigint      references stores (store_id),
    name         text        not null,
    -- the key has 256 random bits, so a plain digest is enough and looking one up stays cheap
    key_sha256   bytea       not null,
    -- the last characters, so that people can tell keys apart
    hint         text        not null,
    created_at   timestamptz not null,
    -- exact to the minute: not every request writes here
    last_used_at timestamptz,
    revoked_at   timestamptz,
    constraint api_keys_key_sha256_key unique (key_sha256)
);
