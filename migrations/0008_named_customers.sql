-- Only customers with an external id are found by it, so only they are in its index. An index that
-- holds the others as well looks as good as the one of phones to whoever searches a phone without
-- external id, while the planner knows nothing of the table; a plan that walks all customers without
-- external id would be kept.
create unique index customers_named_key on customers (external_id, store_id)
    where external_id is not null;
alter table customers drop constraint customers_external_id_key;
