-- Due rows by store: the sweep steps from store to store, and leases for each of them in turn.
create index outbox_due_by_store on outbox (bucket, kind, store_id, due_at) where state = 'waiting';
