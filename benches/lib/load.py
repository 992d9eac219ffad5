"""The load generators: each run gives its answers per second, latencies and its own cost."""

import dataclasses
import json
import os
import random
import re
import resource
import signal
import statistics
import tempfile
from pathlib import Path

from . import bulk, content, processes
from .processes import BenchError


@dataclasses.dataclass
class Load:
    """What a generator saw."""

    answered: int
    seconds: float
    p50_ms: float | None
    p99_ms: float | None
    cpu_seconds: float
    # Answers that are no success, and requests without any answer.
    refused: int = 0
    broken: int = 0
    # Requests that were under way at the end: written perhaps, but not counted.
    unfinished: int = 0

    @property
    def good(self):
        return self.answered - self.refused

    @property
    def rate(self):
        return self.good / self.seconds


class Running:
    """A generator at work."""

    def __init__(self, arguments, folder, **options):
        self.arguments = [str(argument) for argument in arguments]
        self.out = tempfile.TemporaryFile("w+", dir=folder)
        self.process = processes.start(
            self.arguments, signal.SIGKILL, stdout=self.out, stderr=self.out, **options
        )

    def finish(self):
        """Waits for its end; gives what it printed and its processor seconds."""
        try:
            _, status, usage = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            self.abandon()
        self.out.seek(0)
        told = self.out.read()
        self.out.close()
        if self.process.returncode != 0:
            raise BenchError(f"{self.arguments[0]} failed:\n{told[-2000:]}")
        return told, usage.ru_utime + usage.ru_stime

    def abandon(self):
        """Ends it, if it still runs."""
        processes.stop(self.process, signal.SIGKILL)


@dataclasses.dataclass
class Bodies:
    """What the orders hold besides what is fresh in each of them."""

    line_items: list
    file: Path

    @classmethod
    def in_file(cls, line_items, file):
        Path(file).write_text("\n".join(line_items) + "\n")
        return cls(line_items, Path(file))


class Wrk:
    """A closed loop over HTTP: each connection sends as soon as it has its answer."""

    def __init__(self, folder, bodies):
        self.folder = folder
        self.bodies = bodies

    def start(self, service, connections, seconds, mode="changed", orders=None):
        """Begins; `orders` narrows the keys to the first so many."""
        database = service.database
        arguments = ["wrk", "-t", 1 if connections == 1 else 2, "-c", connections]
        arguments += ["-d", f"{seconds}s", "--timeout", "30s", "-s", content.FOLDER / "orders.lua"]
        arguments += [service.base_url, "--", mode, database.first_store, database.orders_per_store]
        arguments += [orders or database.orders, content.stamp(), content.TEMPLATE_FILE]
        arguments += [self.bodies.file, database.key]
        return Running(arguments, self.folder)

    def finish(self, running, connections):
        """Waits for the end of the run."""
        told, cpu = running.finish()
        line = [line for line in told.splitlines() if line.startswith("{")]
        if not line:
            raise BenchError(f"wrk gave no result:\n{told[-2000:]}")
        seen = json.loads(line[-1])
        return Load(
            answered=seen["requests"],
            seconds=seen["duration_us"] / 1e6,
            p50_ms=seen["p50_us"] / 1000,
            p99_ms=seen["p99_us"] / 1000,
            cpu_seconds=cpu,
            refused=seen["refused"],
            broken=seen["broken"],
            unfinished=connections,
        )

    def run(self, service, connections, seconds, **options):
        return self.finish(self.start(service, connections, seconds, **options), connections)


class WrkPair:
    """Half of the connections to each of two services, at the same time."""

    def __init__(self, wrk, first, second):
        self.wrk = wrk
        self.services = (first, second)

    def run(self, connections, seconds):
        half = connections // 2
        running = []
        try:
            for service in self.services:
                running.append(self.wrk.start(service, half, seconds))
            loads = [self.wrk.finish(run, half) for run in running]
        finally:
            for run in running:
                run.abandon()
        return Load(
            answered=sum(load.answered for load in loads),
            seconds=max(load.seconds for load in loads),
            # Of the slower half: latencies of two runs can't be put together.
            p50_ms=max(load.p50_ms for load in loads),
            p99_ms=max(load.p99_ms for load in loads),
            cpu_seconds=sum(load.cpu_seconds for load in loads),
            refused=sum(load.refused for load in loads),
            broken=sum(load.broken for load in loads),
            unfinished=connections,
        )


class Oha:
    """An open loop (requests come when they come, however long answers take), and a closed one that
    tells the latencies of good answers apart from those of refusals.

    Its bodies are lines of a file, drawn at random: each key has `VARIANTS` of them, so now and
    then a request repeats what its key holds already, and changes nothing.
    """

    KEYS = 20_000
    VARIANTS = 20

    def __init__(self, program, folder, bodies):
        self.program = program
        self.folder = Path(folder)
        self.bodies = bodies

    def write_lines(self, database):
        """Makes the bodies of a run, before its time begins; gives their file."""
        file = self.folder / "bodies.ndjson"
        with open(file, "w") as lines:
            for body in self._lines(database.orders):
                lines.write(body + "\n")
        return file

    def run(self, service, lines, connections, seconds, rate=None):
        database = service.database
        url = f"{service.base_url}/api/v1/stores/{database.first_store}/orders"
        arguments = [self.program, "--no-tui", "--output-format", "json"]
        arguments += ["--stats-success-breakdown", "-c", connections, "-z", f"{seconds}s"]
        arguments += ["--worker-threads", 1, "-m", "POST", "-T", "application/json"]
        arguments += ["-H", f"Authorization: Bearer {database.key}"]
        if rate is not None:
            arguments += ["-q", round(rate), "--latency-correction"]
        told, cpu = Running([*arguments, "-Z", lines, url], self.folder).finish()
        seen = json.loads(told)
        statuses = seen["statusCodeDistribution"]
        errors = dict(seen["errorDistribution"])
        errors.pop("aborted due to deadline", None)
        good = sum(count for status, count in statuses.items() if status.startswith("2"))
        answered = sum(statuses.values())
        latencies = seen["latencyPercentilesSuccessful"]
        return Load(
            answered=answered,
            seconds=seen["summary"]["total"],
            p50_ms=latencies["p50"] * 1000,
            p99_ms=latencies["p99"] * 1000,
            cpu_seconds=cpu,
            refused=answered - good,
            broken=sum(errors.values()),
            unfinished=connections,
        )

    def _lines(self, orders):
        template = content.read_template()
        stamp = content.stamp()
        keys = random.sample(range(1, orders + 1), min(self.KEYS, orders))
        for variant in range(self.VARIANTS):
            for n in keys:
                stamp += 1
                price = f"{random.randint(100000, 999999)}.{variant:02}"
                items = random.choice(self.bodies.line_items)
                yield content.order(template, n, price, stamp, items)


class Streams:
    """NDJSON streams, one after the other, one to each of the first stores."""

    def __init__(self, service, resource, stores, make_body):
        self.service = service
        self.resource = resource
        self.stores = stores
        self.make_body = make_body

    def run(self):
        began = resource.getrusage(resource.RUSAGE_SELF)
        first = self.service.database.first_store
        pushed = [
            bulk.push(self.service, store, self.resource, self.make_body())
            for store in range(first, first + self.stores)
        ]
        ended = resource.getrusage(resource.RUSAGE_SELF)
        return Load(
            answered=sum(stream.rows for stream in pushed),
            seconds=sum(stream.seconds for stream in pushed),
            p50_ms=None,
            p99_ms=None,
            cpu_seconds=ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime,
        )


class Pgbench:
    """A closed loop straight on the database: one prepared statement for each order."""

    def __init__(self, postgres, folder, bodies):
        self.postgres = postgres
        self.folder = Path(folder)
        self.items = len(bodies.line_items)
        self.script = self.folder / "upsert.pgbench.sql"
        self.script.write_text(self._script(bodies.line_items))

    @staticmethod
    def _script(line_items):
        """pgbench can't send texts: the line items are a constant, or come from a small table."""
        script = (content.FOLDER / "upsert.pgbench.sql").read_text()
        items = f"'{line_items[0]}'"
        if len(line_items) > 1:
            items = "(select line_items from bench_line_items where number = :item)"
        return script.replace("__LINE_ITEMS__", items)

    def run(self, database, clients, seconds):
        with tempfile.TemporaryDirectory(dir=self.folder) as logs:
            arguments = [self.postgres.bin / "pgbench", "-n", "-M", "prepared", "-c", clients]
            arguments += ["-j", 2, "-T", seconds, "-f", self.script]
            arguments += ["-D", f"orders={database.orders}", "-D", f"store={database.first_store}"]
            arguments += ["-D", f"items={self.items}"]
            # The ids of a run begin here and grow: shifted, so that runs never meet.
            arguments += ["-D", f"step={content.stamp() << 8}"]
            arguments += ["-l", "--sampling-rate=0.1", f"--log-prefix={logs}/latency"]
            running = Running(arguments, self.folder, env=self.postgres.environment(database.name))
            told, cpu = running.finish()
            latencies = sorted(self._latencies_ms(Path(logs)))
        answered = int(_found(r"transactions actually processed: (\d+)", told))
        failed = int(_found(r"number of failed transactions: (\d+)", told))
        if failed:
            raise BenchError(f"pgbench: {failed} transactions failed:\n{told[-2000:]}")
        rate = float(_found(r"tps = ([\d.]+)", told))
        cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [None] * 99
        return Load(answered, answered / rate, cuts[49], cuts[98], cpu)

    @staticmethod
    def _latencies_ms(folder):
        for log in folder.iterdir():
            with open(log) as lines:
                for line in lines:
                    yield int(line.split()[2]) / 1000


def _found(pattern, text):
    match = re.search(pattern, text)
    if not match:
        raise BenchError(f"no {pattern!r} in:\n{text[-2000:]}")
    return match.group(1)
