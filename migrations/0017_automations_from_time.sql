-- Where a backlog had no positions yet when it was saved or activated: changes up to this time were
-- there as well. See consumers::Boundary.
alter table automations add column from_time timestamptz;
