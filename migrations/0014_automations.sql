create table automations (
    store_id         bigint      not null,
    id               uuid        not null,
    external_id      text        collate "C" not null,
    name             text        not null,
    status           text        not null,
    -- the resource's path; null: triggered by calls of its webhook
    resource         text,
    -- names of members and the values that they may have
    condition        jsonb       not null,
    webhook_id       uuid,
    delay_seconds    bigint      not null,
    -- once_per_record, every_change or cooldown
    reentry          text        not null,
    cooldown_seconds bigint,
    template_id      bigint      not null,
    -- names of the template's variables and where their values come from
    variables        jsonb       not null,
    -- events up to here were there when it was saved or activated
    from_position    bigint      not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    constraint automations_pkey primary key (store_id, id),
    constraint automations_external_id_key unique (external_id, store_id),
    constraint automations_status_check check (status in ('active', 'paused')),
    constraint automations_reentry_check
        check (reentry in ('once_per_record', 'every_change', 'cooldown')),
    constraint automations_cooldown_check
        check ((reentry = 'cooldown') = (cooldown_seconds is not null)),
    constraint automations_trigger_check check ((resource is null) = (webhook_id is not null))
);

-- The store and automation that a webhook belongs to: its path names neither. A control table.
create table automation_webhooks (
    webhook_id    uuid   primary key,
    store_id      bigint not null references stores (store_id),
    automation_id uuid   not null
);

-- What automations did, and what they didn't do, and why.
create table automation_runs (
    store_id               bigint      not null,
    id                     uuid        not null,
    automation_id          uuid        not null,
    -- of the automation: its runs outlive it
    automation_external_id text        collate "C" not null,
    -- what set it off: the event's id, or a digest of what the webhook's caller names the occasion by
    occasion               bytea       not null,
    -- what a later run must not be about: a digest of the record, or of the contact
    once                   bytea,
    -- the record; null: a webhook was called
    resource               text,
    record_id              uuid,
    -- of the record, or what the webhook's caller sent; null where it would name a person
    external_id            text        collate "C",
    -- a digest of the number that it is about; null while unknown, and once the person has been erased
    contact                bytea,
    -- whom the webhook's caller named, as E.164, and the variables that they sent; null once it ended
    recipient              text        collate "C",
    input                  jsonb,
    status                 text        not null,
    reason                 text,
    detail                 text,
    -- proposed with the run, so that it can have but one message
    message_id             uuid        not null,
    due_at                 timestamptz not null,
    created_at             timestamptz not null,
    updated_at             timestamptz not null,
    constraint automation_runs_pkey primary key (id, store_id),
    constraint automation_runs_occasion_key unique (occasion, automation_id, store_id),
    constraint automation_runs_status_check
        check (status in ('scheduled', 'sent', 'skipped', 'failed'))
) with (fillfactor = 85);

create unique index automation_runs_once_key on automation_runs (once, automation_id, store_id)
    where once is not null;
create index automation_runs_automation on automation_runs (automation_id, store_id, id);
create index automation_runs_record on automation_runs (record_id, store_id, id)
    where record_id is not null;
create index automation_runs_contact on automation_runs (contact, store_id, automation_id, created_at)
    where contact is not null;
-- what sent nothing, and what keeps no later run from anything, goes after a time
create index automation_runs_ended on automation_runs (store_id, updated_at)
    where status in ('skipped', 'failed');
create index automation_runs_sent on automation_runs (store_id, updated_at)
    where status = 'sent' and once is null;
