-- On a Citus cluster each store's rows live together on one node; elsewhere this does nothing.
do $$
declare
    tenant_table text;
begin
    if not exists (select from pg_extension where extname = 'citus') then
        return;
    end if;
    perform create_reference_table('automation_webhooks');
    foreach tenant_table in array array[
        'event_consumers', 'automations', 'automation_runs', 'exports', 'export_deliveries',
        'export_log', 'export_runs', 'export_results', 'export_leftovers'
    ] loop
        perform create_distributed_table(tenant_table, 'store_id');
    end loop;
end
$$;
