"""What every measure works with: the settings of this run, databases, services, recorded loads."""

from . import bulk, content, tools
from . import service as services
from .load import Bodies, Oha, Wrk
from .measured import ONE_WRITE_EACH


class Bench:
    """What every measure needs: the settings of this run and the parts that do the work."""

    def __init__(self, options, postgres, databases, recorder, report, folder):
        self.options = options
        self.postgres = postgres
        self.databases = databases
        self.recorder = recorder
        self.report = report
        self.folder = folder
        plain = [content.PLAIN_LINE_ITEMS]
        self.bodies = Bodies.in_file(plain, folder / "plain_line_items.txt")
        self.real_bodies = None
        if options.orders_file:
            real = content.real_line_items(content.read_orders(options.orders_file))
            self.real_bodies = Bodies.in_file(real, folder / "real_line_items.txt")
        self.wrk = Wrk(folder, self.bodies)

    @property
    def with_peers(self):
        return self.options.only != "keyfold"

    def keyfold(self, database, name="keyfold", **settings):
        """The server under test on a database."""
        return services.keyfold(self.options.server, database, self.folder, name, **settings)

    def keyfold_database(self):
        """The one that most measures share."""
        return self.databases.filled("keyfold", self.options.orders)

    def peers_database(self, bodies):
        """The same tables for those who write them with statements of their own."""
        database = self.databases.filled("peers", self.options.orders)
        self.databases.keep_line_items(database, bodies.line_items)
        return database

    def rounds(self):
        for number in range(1, self.options.rounds + 1):
            print(f" round {number}", flush=True)
            yield number

    def warm_up(self, service, connections, **options):
        """Unmeasured: connections, prepared statements, caches."""
        self.wrk.run(service, connections, self.options.warm_up, **options)

    def write_fixed_content(self, service, keys):
        """Puts the content there that the mode `fixed` sends again."""
        template = content.read_template()
        items = self.bodies.line_items
        lines = (content.fixed_order(template, n, items) for n in range(1, keys + 1))
        bulk.push(service, service.database.first_store, "orders", bulk.chunks(lines))

    def record_wrk(
        self, measure, side, service, connections, expected=ONE_WRITE_EACH, wrk=None, **options
    ):
        """A measured closed loop over HTTP."""
        wrk = wrk or self.wrk
        figures = self.recorder.record(
            f"{measure} {side}",
            service.database,
            lambda: wrk.run(service, connections, self.options.seconds, **options),
            services=[service],
            expected=expected,
        )
        self.report.cost(measure, side, figures)
        return figures

    def oha(self):
        """The open-loop generator, built if need be."""
        return Oha(tools.install_oha(self.options.tools), self.folder, self.bodies)

    def record_oha(self, measure, side, oha, service, connections, expected, rate=None):
        """A measured run of oha: an open loop when there is a rate."""
        lines = oha.write_lines(service.database)
        figures = self.recorder.record(
            f"{measure} {side}",
            service.database,
            lambda: oha.run(service, lines, connections, self.options.seconds, rate),
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
