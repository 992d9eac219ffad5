"""`copy`: the fastest way in that Postgres itself has, to measure bulk streams against."""

import os
import pwd
from pathlib import Path

from .processes import BenchError


class Copies:
    """The rows of a database in files, and their way into another one."""

    def __init__(self, postgres, databases, folder):
        self.postgres = postgres
        self.databases = databases
        self.folder = Path(folder, "copies")
        self.folder.mkdir(exist_ok=True)
        # Postgres reads and writes the files itself, so that no client costs anything.
        if postgres.user is not None:
            owner = pwd.getpwnam(postgres.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    def take(self, database):
        """Dumps what the service wrote."""
        for table in ("orders", "customers", "events"):
            self.postgres.query(database.name, f"copy {table} to '{self._file(table)}'")

    def put(self, database, tables):
        """Fills empty tables, in one transaction; gives orders a second."""
        self.databases.start_fresh(database)
        clock = "select extract(epoch from clock_timestamp());"
        copy = "".join(f"copy {table} from '{self._file(table)}';" for table in tables)
        times = self.postgres.query(database.name, f"{clock} begin; {copy} commit; {clock}")
        orders = self.postgres.number(database.name, "select count(*) from orders")
        if orders == 0:
            raise BenchError("copy brought no orders")
        rate = orders / (float(times[1][0]) - float(times[0][0]))
        print(f"  copy of {', '.join(tables)}: {rate:,.0f} orders/s", flush=True)
        return rate

    def _file(self, table):
        return self.folder / f"{table}.copy"
