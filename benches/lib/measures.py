"""The measures, by the numbers of the design: what runs against what, and what to reach."""

import contextlib

from . import service as services
from . import tools
from .load import Pgbench, Wrk
from .measured import Expected


class Bench:
    """What every measure needs: the settings of this run and the parts that do the work."""

    def __init__(self, options, postgres, databases, recorder, report, bodies, folder):
        self.options = options
        self.postgres = postgres
        self.databases = databases
        self.recorder = recorder
        self.report = report
        self.bodies = bodies
        self.folder = folder
        self.wrk = Wrk(folder, bodies)

    @property
    def with_peers(self):
        return self.options.only != "keyfold"

    def keyfold(self, database, name="keyfold", **settings):
        """The server under test on a database."""
        return services.keyfold(self.options.server, database, self.folder, name, **settings)

    def keyfold_database(self):
        return self.databases.filled("keyfold", self.options.orders)

    def peers_database(self):
        database = self.databases.filled("peers", self.options.orders)
        self.databases.keep_line_items(database, self.bodies.line_items)
        return database

    def rounds(self):
        for number in range(1, self.options.rounds + 1):
            print(f" round {number}", flush=True)
            yield number

    def warm_up(self, service, connections, **options):
        """Unmeasured: connections, prepared statements, caches."""
        self.wrk.run(service, connections, self.options.warm_up, **options)

    def record_wrk(self, measure, side, service, connections, expected=Expected(), **options):
        """A measured closed loop over HTTP."""
        figures = self.recorder.record(
            f"{measure} {side}",
            service.database,
            lambda: self.wrk.run(service, connections, self.options.seconds, **options),
            services=[service],
            expected=expected,
        )
        self.report.cost(measure, side, figures)
        return figures

    def record_pgbench(self, measure, pgbench, database, clients):
        """A measured closed loop straight on the database."""
        side = f"pgbench, {clients} clients"
        figures = self.recorder.record(
            f"{measure} {side}",
            database,
            lambda: pgbench.run(database, clients, self.options.seconds),
        )
        self.report.cost(measure, side, figures)
        return figures


def p1(bench):
    """Single POST, all changed, 64 clients : pgbench writing the same rows."""
    row = bench.report.row("P1", "64 clients, all changed : pgbench", "/s", must=1.3, aim=2.0)
    database = bench.keyfold_database()
    if bench.with_peers:
        peers = bench.peers_database()
        pgbench = Pgbench(bench.postgres, bench.folder, bench.bodies)
        for clients in (16, 64):
            pgbench.run(peers, clients, bench.options.warm_up)
    with bench.keyfold(database) as server:
        bench.warm_up(server, 64)
        for _ in bench.rounds():
            ours = bench.record_wrk("P1", "keyfold, 64 clients", server, 64)
            theirs = None
            if bench.with_peers:
                runs = [bench.record_pgbench("P1", pgbench, peers, c) for c in (16, 64)]
                theirs = max(run.rate for run in runs)
            row.add(ours.rate, theirs)


def p2(bench):
    """Single POST, all changed, 256 clients : Fastify and pg with 2 workers writing the same rows."""
    row = bench.report.row("P2", "256 clients, all changed : Fastify", "/s", must=2.5, aim=4.0)
    with contextlib.ExitStack() as running:
        server = running.enter_context(bench.keyfold(bench.keyfold_database()))
        sides = [("keyfold", server)]
        if bench.with_peers:
            tools.install_fastify()
            peer = services.fastify(bench.peers_database(), bench.folder)
            sides.append(("Fastify", running.enter_context(peer)))
        for _, service in sides:
            bench.warm_up(service, 256)
        for _ in bench.rounds():
            runs = [bench.record_wrk("P2", name, service, 256) for name, service in sides]
            row.add(*(run.rate for run in runs))


MEASURES = {"P1": p1, "P2": p2}
