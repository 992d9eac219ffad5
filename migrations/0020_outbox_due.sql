-- Its work is done by outbox_due_by_store. Left beside it, a plan made for an empty queue could sort a
-- bucket's rows by store instead of stepping over them.
drop index outbox_due;
