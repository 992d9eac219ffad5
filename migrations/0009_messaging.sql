-- How each store reaches its shoppers. A control table, written by the command line alone: a
-- provider's event names no store, only the number that it came to.
create table channels (
    store_id        bigint      primary key references stores (store_id),
    provider        text        not null,
    -- the provider's id of the number that messages are sent from
    phone_number_id text        collate "C",
    -- the provider's id of the account that templates belong to
    waba_id         text        collate "C",
    -- sealed under KEYFOLD_SECRET_KEY
    access_token    bytea,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    constraint channels_provider_check check (provider in ('sandbox', 'whatsapp')),
    constraint channels_whatsapp_check check (
        provider <> 'whatsapp'
        or (phone_number_id is not null and waba_id is not null and access_token is not null)
    ),
    -- an event of the provider must lead to one store
    constraint channels_phone_number_id_key unique (phone_number_id)
);

-- The store that a provider's number belongs to, or belonged to last: events about what was sent from
-- it still come when the channel has another one.
create table channel_numbers (
    phone_number_id text   collate "C" primary key,
    store_id        bigint not null references stores (store_id)
);

-- A control table as well: its ids are numbers that people see.
create table message_templates (
    template_id bigint      generated always as identity primary key,
    store_id    bigint      not null references stores (store_id),
    -- the provider that it can be sent through
    provider    text        not null,
    name        text        collate "C" not null,
    language    text        collate "C" not null,
    -- approved, or the provider's word for why it can't be sent
    status      text        not null,
    header      text,
    body        text        not null,
    footer      text,
    buttons     jsonb       not null,
    -- the names of the variables, in order of appearance
    variables   jsonb       not null,
    -- where the provider wants each variable; null in the sandbox
    slots       jsonb,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    constraint message_templates_name_key unique (store_id, provider, name, language)
);

-- What is true of a store's channel right now. Apart from the channel, which is a control table.
create table channel_states (
    store_id     bigint not null,
    -- when the next message may leave, were none saved up (see messaging/pace.rs)
    next_send_at timestamptz,
    -- messages that wait for their turn are due up to here, one after the other
    parked_until timestamptz,
    -- nothing leaves before
    paused_until timestamptz,
    -- the provider's code that paused it
    paused_code  text,
    constraint channel_states_pkey primary key (store_id)
);

create table contacts (
    store_id         bigint      not null,
    id               uuid        not null,
    -- E.164; unknown while the provider keeps it to itself
    phone            text        collate "C",
    -- the provider's own id of the person
    provider_user_id text        collate "C",
    name             text,
    email            text,
    -- opens the service window of 24 hours
    last_inbound_at  timestamptz,
    opted_out_at     timestamptz,
    -- when they last said whether they want messages; what is older comes late
    wish_at          timestamptz,
    -- as in channel_states, for messages to this person
    next_send_at     timestamptz,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    constraint contacts_pkey primary key (store_id, id),
    constraint contacts_reachable check (phone is not null or provider_user_id is not null)
) with (fillfactor = 85);

create unique index contacts_phone_key on contacts (phone, store_id) where phone is not null;
create unique index contacts_provider_user_id_key on contacts (provider_user_id, store_id)
    where provider_user_id is not null;

create table messages (
    store_id            bigint      not null,
    id                  uuid        not null,
    contact_id          uuid        not null,
    -- E.164; null once the person has been erased
    recipient           text        collate "C",
    -- text, image … or template
    kind                text        not null,
    -- what is sent; null once the person has been erased
    content             jsonb,
    provider            text        not null,
    -- null once the person has been erased: WhatsApp's contains the phone number
    provider_message_id text        collate "C",
    status              text        not null,
    error_code          text,
    error_detail        text,
    -- what happened when: a handful of entries
    timeline            jsonb       not null,
    version             bigint      not null,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    erased_at           timestamptz,
    constraint messages_pkey primary key (store_id, id),
    constraint messages_status_check
        check (status in ('queued', 'sent', 'delivered', 'read', 'failed', 'unknown'))
) with (fillfactor = 70);

create index messages_provider_message_id on messages (provider_message_id, store_id)
    where provider_message_id is not null;
create index messages_contact on messages (contact_id, store_id, id);

-- The answers to sends with an Idempotency-Key. Written in the transaction of the send: a row
-- without an answer is never seen by others.
create table idempotency_keys (
    store_id      bigint      not null,
    -- grows with time: the order of the log, and of the sweeper
    id            uuid        not null,
    endpoint      text        not null,
    key           text        collate "C" not null,
    -- of the body's bytes as they came
    body_sha256   bytea       not null,
    first_seen_at timestamptz not null,
    replays       bigint      not null default 0,
    status        smallint,
    content_type  text,
    location      text,
    -- as bytes: jsonb would reorder them
    body          bytea,
    message_id    uuid,
    -- the selective column first, as in the keys of resources
    constraint idempotency_keys_pkey primary key (key, store_id, endpoint),
    constraint idempotency_keys_endpoint_check check (endpoint in ('send', 'templates'))
) with (fillfactor = 85);

create unique index idempotency_keys_id_key on idempotency_keys (store_id, id);
create index idempotency_keys_message on idempotency_keys (message_id, store_id)
    where message_id is not null;

-- What the provider told us and nobody has looked at yet: one message or one status a row.
create table inbound_items (
    store_id    bigint      not null,
    id          uuid        not null,
    payload     jsonb       not null,
    received_at timestamptz not null,
    constraint inbound_items_pkey primary key (id, store_id)
);

create index inbound_items_received_at on inbound_items (store_id, received_at);

-- Messages of the provider that were counted already: it sends them again, in any order.
create table inbound_messages (
    store_id    bigint      not null,
    -- of the provider's id, which contains the sender's number
    sha256      bytea       not null,
    received_at timestamptz not null,
    constraint inbound_messages_pkey primary key (sha256, store_id)
);

create index inbound_messages_received_at on inbound_messages (store_id, received_at);
