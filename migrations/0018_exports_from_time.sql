-- Where a backlog had no positions yet when it became live: changes up to this time were there as well.
-- See consumers::Boundary.
alter table exports add column from_time timestamptz;
