-- On a Citus cluster each store's rows live together on one node; elsewhere this does nothing.
do $$
declare
    tenant_table text;
begin
    if not exists (select from pg_extension where extname = 'citus') then
        return;
    end if;
    perform create_reference_table('teams');
    perform create_reference_table('stores');
    perform create_reference_table('api_keys');
    foreach tenant_table in array array[
        'customers', 'customer_phones', 'orders', 'checkouts', 'shipments', 'events', 'event_feeds'
    ] loop
        perform create_distributed_table(tenant_table, 'store_id');
    end loop;
end
$$;
