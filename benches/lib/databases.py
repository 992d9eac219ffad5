"""The databases of a run: migrated by the service, filled by plain SQL, counted afterwards."""

import dataclasses
import json
import os

from . import content, processes
from .processes import BenchError

# One customer to each order. The ids grow like UUIDv7 do, so that rows lie in the order of their
# making, and the phones are possible numbers.
PRELOAD = """
insert into customers (
    store_id, id, external_id, phone, first_name, last_name, email, locale, tags, lifetime_value,
    orders_count, metadata, version, replaced_version, created_at, updated_at
)
select
    {first_store} + (n - 1) / {orders_per_store},
    (lpad(to_hex(1700000000000 + n), 12, '0') || '70018000' || lpad(to_hex(n), 12, '0'))::uuid,
    'c-' || n, '+336' || lpad(n::text, 8, '0'), 'Camille', 'Martin',
    'camille.' || n || '@example.com', 'fr', '[]', 0, 1, '{{}}', 1, 0, now(), now()
from generate_series(1, {orders}) as n;

insert into orders (
    store_id, id, external_id, placed_at, total_price, currency, financial_status,
    fulfillment_status, customer_id, customer_digest, line_items, tags, metadata, version,
    replaced_version, created_at, updated_at
)
select
    {first_store} + (n - 1) / {orders_per_store},
    (lpad(to_hex(1700000000000 + n), 12, '0') || '70028000' || lpad(to_hex(n), 12, '0'))::uuid,
    'o-' || n, '2026-01-15T09:30:00Z', 49.90, 'EUR', 'pending', 'unfulfilled',
    (lpad(to_hex(1700000000000 + n), 12, '0') || '70018000' || lpad(to_hex(n), 12, '0'))::uuid,
    sha256(n::text::bytea), '{line_items}', '["web"]', '{{}}', 1, 0, now(), now()
from generate_series(1, {orders}) as n;

vacuum analyze;
checkpoint;
"""

# Every run of a filled database begins like this: no events, no dead rows, everything that fits in
# memory, and as far from the last checkpoint as any other run.
FRESH_START = """
truncate events;
vacuum orders, customers;
select pg_prewarm(c.oid::regclass)
from pg_class c
where c.relname in (
    'orders', 'orders_pkey', 'orders_external_id_key', 'orders_customer',
    'customers', 'customers_pkey', 'customers_external_id_key', 'customers_phone_alone_key',
    'customers_phone'
);
checkpoint;
select pg_stat_statements_reset();
"""

# Not even a vacuum: from then on the planner would know that the tables are empty.
FRESH_START_WHEN_EMPTY = """
truncate orders, customers, events;
checkpoint;
select pg_stat_statements_reset();
"""

TOP_STATEMENTS = """
select
    round(total_exec_time), round(total_plan_time), calls, rows, round(mean_exec_time::numeric, 3),
    round(wal_bytes / greatest(calls, 1)), left(regexp_replace(query, '\\s+', ' ', 'g'), 150)
from pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database())
order by total_exec_time + total_plan_time desc
limit 15
"""


@dataclasses.dataclass
class Database:
    """A database with a team, stores and a key that opens all of them."""

    name: str
    url: str
    key: str
    first_store: int
    orders: int
    orders_per_store: int


@dataclasses.dataclass
class Counts:
    """What is stored, as far as writes show in it."""

    order_versions: int
    customer_versions: int
    order_events: int
    customer_events: int


class Databases:
    """Makes databases, or finds them again in a kept work folder."""

    def __init__(self, postgres, notes, server):
        self.postgres = postgres
        self.notes = notes
        self.server = server

    def filled(self, name, orders, stores=1):
        """A database with so many orders, evenly over so many stores."""
        return self._made(name, orders, stores)

    def empty(self, name, stores=1):
        """A migrated database without records, made anew each time."""
        self.notes.forget(name)
        return self._made(name, 0, stores)

    def drop(self, database):
        """Frees its space."""
        self.notes.forget(database.name)
        self.postgres.query("postgres", f"drop database {database.name}")

    def count(self, database):
        """Counts what is there."""
        rows = self.postgres.query(
            database.name,
            "select coalesce(sum(version), 0) from orders;"
            "select coalesce(sum(version), 0) from customers;"
            "select count(*) from events where resource = 'orders';"
            "select count(*) from events where resource = 'customers';",
        )
        return Counts(*(int(row[0]) for row in rows))

    def start_fresh(self, database):
        """Brings it into the state in which every run begins: filled, or without any record."""
        statements = FRESH_START if database.orders else FRESH_START_WHEN_EMPTY
        self.postgres.query(database.name, statements)

    def top_statements(self, database):
        """Where the database's time went since the fresh start."""
        return self.postgres.query(database.name, TOP_STATEMENTS)

    def keep_line_items(self, database, line_items):
        """Puts the line items where a side that can't send them finds them."""
        rows = "".join(
            f"{number}\t{json_text}\n".replace("\\", "\\\\")
            for number, json_text in enumerate(line_items, start=1)
        )
        self.postgres.query(
            database.name,
            "drop table if exists bench_line_items;\n"
            "create table bench_line_items (number integer primary key, line_items jsonb);\n"
            f"copy bench_line_items from stdin;\n{rows}\\.\n"
            "analyze bench_line_items;",
        )

    def _made(self, name, orders, stores):
        wanted = {"orders": orders, "stores": stores}
        noted = self.notes.get(name)
        if noted and noted["wanted"] == wanted:
            self._keyfold(name, "migrate")
            return Database(url=self.postgres.url(name), **noted["database"])
        print(f"making {name}: {orders:,} orders in {stores:,} stores …", flush=True)
        self.postgres.query("postgres", f"drop database if exists {name}")
        self.postgres.query("postgres", f"create database {name}")
        self._keyfold(name, "migrate")
        database = self._tenant(name, orders, stores)
        self.postgres.query(
            name, "create extension pg_prewarm; create extension pg_stat_statements;"
        )
        if orders > 0:
            self._fill(database)
        noted = dataclasses.asdict(database)
        del noted["url"]
        self.notes.put(name, {"wanted": wanted, "database": noted})
        return database

    def _tenant(self, name, orders, stores):
        team = self._keyfold(name, "team", "create", "--name", "Bench")["id"]
        store = ["store", "create", "--team", team, "--name", "Bench", "--default-country", "FR"]
        first_store = self._keyfold(name, *store)["id"]
        self.postgres.query(
            name,
            "insert into stores (team_id, name, default_country, created_at)"
            f" select {team}, 'Bench ' || n, 'FR', now() from generate_series(2, {stores}) as n",
        )
        key = self._keyfold(name, "key", "create", "--team", team, "--name", "bench")["key"]
        return Database(
            name, self.postgres.url(name), key, first_store, orders, max(orders // stores, 1)
        )

    def _fill(self, database):
        if database.orders % database.orders_per_store:
            raise BenchError("the orders don't divide evenly by the stores")
        statement = PRELOAD.format(
            first_store=database.first_store,
            orders_per_store=database.orders_per_store,
            orders=database.orders,
            line_items=content.PLAIN_LINE_ITEMS,
        )
        self.postgres.query(database.name, statement)

    def _keyfold(self, name, *arguments):
        environment = os.environ | {"DATABASE_URL": self.postgres.url(name), "KEYFOLD_LOG": "warn"}
        out = processes.run([self.server, "--json", *arguments], env=environment)
        return json.loads(out) if out.strip().startswith("{") else None
