"""The measures, by the numbers of the design: what runs against what, and what to reach."""

import contextlib
import dataclasses

from . import bulk, content, tools
from . import service as services
from .copies import Copies
from .load import Oha, Pgbench, Streams, Wrk, WrkPair
from .measured import Expected

# What a replay repeats: few enough to be written anew before each round.
REPLAYED_KEYS = 50_000
# The real orders are pushed once into each of so many stores: one file is over too soon to measure.
BULK_STORES = 4
ORDERS_A_STORE = 100
# Real orders share customers, and orders of one batch are folded into one version of theirs.
SHARED_CUSTOMERS = Expected(uncounted=("customer versions", "customer events"))
ONLY_CUSTOMERS = Expected(uncounted=("order versions", "order events"))
# oha draws its bodies; twice the expected share of repetitions would be no chance.
DRAWN = Expected(repeats=2 / Oha.VARIANTS)


def p1(bench):
    """Single POST, all changed, 64 clients : pgbench writing the same rows."""
    row = bench.report.row("P1", "64 clients, all changed : pgbench", "/s", must=1.3, aim=2.0)
    single_writes_by_pgbench(bench, "P1", row, bench.bodies)
    if bench.real_bodies:
        row = bench.report.row("P1", "the same with real line items", "/s")
        single_writes_by_pgbench(bench, "P1 real", row, bench.real_bodies)


def single_writes_by_pgbench(bench, measure, row, bodies):
    """P1's pair with some line items; the better one of two pgbench runs counts."""
    database = bench.keyfold_database()
    wrk = Wrk(bench.folder, bodies)
    if bench.with_peers:
        peers = bench.peers_database(bodies)
        pgbench = Pgbench(bench.postgres, bench.folder, bodies)
        for clients in (16, 64):
            pgbench.run(peers, clients, bench.options.warm_up)
    with bench.keyfold(database) as server:
        wrk.run(server, 64, bench.options.warm_up)
        for _ in bench.rounds():
            ours = bench.record_wrk(measure, "keyfold, 64 clients", server, 64, wrk=wrk)
            theirs = None
            if bench.with_peers:
                runs = [bench.record_pgbench(measure, pgbench, peers, c) for c in (16, 64)]
                theirs = max(run.rate for run in runs)
            row.add(ours.rate, theirs)


def p2(bench):
    """Single POST, all changed, 256 clients : Fastify and pg, 2 workers, writing the same rows."""
    row = bench.report.row("P2", "256 clients, all changed : Fastify", "/s", must=2.5, aim=4.0)
    with contextlib.ExitStack() as running:
        server = running.enter_context(bench.keyfold(bench.keyfold_database()))
        sides = [("keyfold", server)]
        if bench.with_peers:
            tools.install_fastify()
            peer = services.fastify(bench.peers_database(bench.bodies), bench.folder)
            sides.append(("Fastify", running.enter_context(peer)))
        for _, service in sides:
            # Twice as long: V8 has much to compile.
            bench.warm_up(service, 256)
            bench.warm_up(service, 256)
        for _ in bench.rounds():
            runs = [bench.record_wrk("P2", name, service, 256) for name, service in sides]
            row.add(*(run.rate for run in runs))


def p3(bench):
    """One client, p50, default settings : the same server with lanes of one."""
    row = bench.report.row(
        "P3", "1 client, p50 : no grouping", " ms", must=1.1, aim=1.0, better="lower"
    )
    database = bench.keyfold_database()
    with (
        bench.keyfold(database) as grouping,
        bench.keyfold(database, "keyfold-alone", write_batch=1) as alone,
    ):
        for service in (grouping, alone):
            bench.warm_up(service, 1)
        for _ in bench.rounds():
            ours = bench.record_wrk("P3", "keyfold", grouping, 1)
            theirs = bench.record_wrk("P3", "keyfold, batches of 1", alone, 1)
            row.add(ours.p50_ms, theirs.p50_ms)


def p4(bench):
    """Replay of unchanged content : the same keys changed, at 64 and 256 clients."""
    database = bench.keyfold_database()
    keys = min(database.orders, REPLAYED_KEYS)
    with bench.keyfold(database) as server:
        for connections in (64, 256):
            what = f"{connections} clients, replay : changed"
            row = bench.report.row("P4", what, "/s", must=1.5, aim=2.2)
            bench.warm_up(server, connections, orders=keys)
            for _ in bench.rounds():
                bench.write_fixed_content(server, keys)
                replay = bench.record_wrk(
                    "P4",
                    f"replay, {connections} clients",
                    server,
                    connections,
                    Expected(writes_each=0),
                    mode="fixed",
                    orders=keys,
                )
                changed = bench.record_wrk(
                    "P4", f"changed, {connections} clients", server, connections, orders=keys
                )
                row.add(replay.rate, changed.rate)


def p5(bench):
    """NDJSON bulk of real orders : copy of the same rows into the same tables and indexes."""
    orders = content.read_orders(bench.options.orders_file)
    bulk_row = bench.report.row("P5", "bulk : copy of the orders", " rows/s", must=0.4, aim=0.7)
    all_row = bench.report.row("P5", "bulk : copy of orders, customers, events", " rows/s")
    database = bench.databases.empty("bulk", stores=BULK_STORES)
    copied = bench.databases.empty("copied")
    copies = Copies(bench.postgres, bench.databases, bench.folder)
    with bench.keyfold(database) as server:
        # The first stream is the warm-up.
        for number in range(bench.options.rounds + 1):
            load = Streams(server, "orders", BULK_STORES, lambda: orders)
            ours = bench.recorder.record("P5 bulk", database, load.run, [server], SHARED_CUSTOMERS)
            copies.take(database)
            alone = copies.put(copied, ["orders"])
            together = copies.put(copied, ["orders", "customers", "events"])
            if number == 0:
                continue
            bench.report.cost("P5", "keyfold, NDJSON", ours)
            bulk_row.add(ours.rate, alone)
            all_row.add(ours.rate, together)
    bench.databases.drop(database)
    bench.databases.drop(copied)


def p6(bench):
    """P1 with 5 million orders in the table : with 50 thousand."""
    large, small = (250_000, 25_000) if bench.options.quick else (5_000_000, 50_000)
    row = bench.report.row("P6", f"{large:,} orders : {small:,}", "/s", must=0.8, aim=0.95)
    with (
        bench.keyfold(bench.databases.filled("large", large), "keyfold-large") as many,
        bench.keyfold(bench.databases.filled("small", small), "keyfold-small") as few,
    ):
        compare(bench, "P6", row, (f"{large:,} orders", many), (f"{small:,} orders", few))


def p7(bench):
    """P1 over 10,000 stores : over one store."""
    stores = bench.options.orders // ORDERS_A_STORE
    row = bench.report.row("P7", f"{stores:,} stores : 1 store", "/s", must=0.9, aim=1.0)
    spread = bench.databases.filled("stores", bench.options.orders, stores)
    with (
        bench.keyfold(spread, "keyfold-stores") as many,
        bench.keyfold(bench.keyfold_database()) as one,
    ):
        compare(bench, "P7", row, (f"{stores:,} stores", many), ("1 store", one))


def p8(bench):
    """p99 at half of P1's rate, open loop."""
    row = bench.report.row(
        "P8", "p99 at half of the full rate", " ms", must=10, aim=5, better="lower", goal="value"
    )
    oha = bench.oha()
    with bench.keyfold(bench.keyfold_database()) as server:
        bench.warm_up(server, 64)
        for _ in bench.rounds():
            full = bench.record_wrk("P8", "full rate, 64 clients", server, 64)
            half = bench.record_oha("P8", "half of it", oha, server, 64, DRAWN, full.rate / 2)
            if half.rate < 0.97 * full.rate / 2:
                row.note = "the generator or the service did not keep up with the wanted rate"
            row.add(half.p99_ms)


def p9(bench):
    """Resident memory at 256 clients, and during a large NDJSON stream."""
    clients = bench.report.row(
        "P9", "peak memory, 256 clients", " MiB", must=100, aim=60, better="lower", goal="value"
    )
    with bench.keyfold(bench.keyfold_database()) as server:
        for _ in bench.rounds():
            clients.add(bench.record_wrk("P9", "256 clients", server, 256).peak_mib)
    lines = (10**8 if bench.options.quick else 10**9) // bulk.CUSTOMER_LINE_BYTES
    stream = bench.report.row(
        "P9",
        f"peak memory, a stream of {lines * bulk.CUSTOMER_LINE_BYTES / 1e6:,.0f} MB",
        " MiB",
        must=100,
        aim=60,
        better="lower",
        goal="value",
    )
    database = bench.databases.empty("stream")
    with bench.keyfold(database, "keyfold-stream") as server:
        load = Streams(server, "customers", 1, lambda: bulk.chunks(bulk.customers(lines)))
        figures = bench.recorder.record("P9 stream", database, load.run, [server], ONLY_CUSTOMERS)
        bench.report.cost("P9", "stream", figures)
        stream.add(figures.peak_mib)
    bench.databases.drop(database)


def p10(bench):
    """Two server processes on one database, one hot store : one process."""
    row = bench.report.row(
        "P10", "2 processes, 32 clients each : 1 process, 64 clients", "/s", must=0.9, aim=1.0
    )
    database = bench.keyfold_database()
    with (
        bench.keyfold(database, "keyfold-first") as first,
        bench.keyfold(database, "keyfold-second") as second,
    ):
        pair = WrkPair(bench.wrk, first, second)
        pair.run(64, bench.options.warm_up)
        for _ in bench.rounds():
            ours = bench.recorder.record(
                "P10 2 processes",
                database,
                lambda: pair.run(64, bench.options.seconds),
                [first, second],
            )
            bench.report.cost("P10", "2 processes", ours)
            theirs = bench.record_wrk("P10", "1 process", first, 64)
            row.add(ours.rate, theirs.rate)


def p11(bench):
    """Good answers at 10 times the load, clients that retry at once : P1's rate."""
    oha = bench.oha()
    refusing = Expected(may_refuse=True)
    drawn = dataclasses.replace(DRAWN, may_refuse=True)
    with bench.keyfold(bench.keyfold_database()) as server:
        bench.warm_up(server, 64)
        for clients in (640, 2_560):
            rate = bench.report.row(
                "P11", f"good answers, {clients} clients : 64", "/s", must=0.8, aim=0.9
            )
            p99 = bench.report.row(
                "P11",
                f"p99 of good answers, {clients} clients",
                " ms",
                must=250,
                better="lower",
                goal="value",
            )
            for _ in bench.rounds():
                full = bench.record_wrk("P11", "64 clients", server, 64)
                over = bench.record_wrk("P11", f"{clients} clients", server, clients, refusing)
                rate.add(over.rate, full.rate)
                # wrk can't tell the latencies of good answers from those of refusals.
                over = bench.record_oha(
                    "P11", f"{clients} clients, oha", oha, server, clients, drawn
                )
                p99.add(over.p99_ms)


def compare(bench, measure, row, ours, theirs):
    """Rounds of P1's load on two services, ours and theirs."""
    for _, service in (ours, theirs):
        bench.warm_up(service, 64)
    for _ in bench.rounds():
        row.add(*(bench.record_wrk(measure, *side, 64).rate for side in (ours, theirs)))


MEASURES = {
    "P1": p1,
    "P2": p2,
    "P3": p3,
    "P4": p4,
    "P5": p5,
    "P6": p6,
    "P7": p7,
    "P8": p8,
    "P9": p9,
    "P10": p10,
    "P11": p11,
}
