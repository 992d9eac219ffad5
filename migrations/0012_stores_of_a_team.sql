-- A key that can use one store needs not name it.
create index stores_team on stores (team_id, store_id);
