-- On a Citus cluster each store's rows live together on one node; elsewhere this does nothing.
do $$
declare
    tenant_table text;
begin
    if not exists (select from pg_extension where extname = 'citus') then
        return;
    end if;
    perform create_reference_table('channels');
    perform create_reference_table('channel_numbers');
    perform create_reference_table('message_templates');
    foreach tenant_table in array array[
        'channel_states', 'contacts', 'messages', 'idempotency_keys', 'inbound_items',
        'inbound_messages', 'outbox'
    ] loop
        perform create_distributed_table(tenant_table, 'store_id');
    end loop;
end
$$;
