"""One measured run: a fresh start, the load, what it cost, and whether Postgres holds what was
answered. An answer of 200 is no proof of a write."""

import dataclasses
import os
import time

from . import processes
from .processes import BenchError

# The kernel's own work and a shell are below this.
DISTURBED_PERCENT = 10


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a run has to leave behind."""

    # Row versions and events for each good answer: 1 for changes, 0 for replays.
    writes_each: int = 1
    # The share of requests that may repeat, by chance, what is stored.
    repeats: float = 0
    # Counts that don't follow from the answers.
    uncounted: tuple = ()
    # Whether the service may turn requests away.
    may_refuse: bool = False


ONE_WRITE_EACH = Expected()


@dataclasses.dataclass
class Figures:
    """What is reported of a run."""

    rate: float
    p50_ms: float | None
    p99_ms: float | None
    good: int
    refused: int
    service_cpu: float | None
    postgres_cpu: float
    generator_cpu: float
    # How much of the machine went to those who take no part; more than a little spoils a run.
    others_percent: float
    wal_bytes_each: float | None
    peak_mib: float | None


class Recorder:
    """Makes measured runs on one Postgres."""

    def __init__(self, postgres, databases, show_statements):
        self.postgres = postgres
        self.databases = databases
        self.show_statements = show_statements

    def record(self, label, database, load, services=(), expected=ONE_WRITE_EACH):
        """Runs `load()` on a database in its fresh state; gives the figures."""
        self.databases.start_fresh(database)
        before = self.databases.count(database)
        for service in services:
            processes.reset_peak_memory(service.pid)
        wal = self.postgres.wal_position_bytes()
        began = time.monotonic()
        cpu = self._cpu_seconds(services)
        seen = load()
        cpu = {who: now - cpu[who] for who, now in self._cpu_seconds(services).items()}
        cpu["generator"] = seen.cpu_seconds
        others = cpu.pop("machine") - sum(cpu.values())
        others /= (time.monotonic() - began) * os.cpu_count()
        wal = self.postgres.wal_position_bytes() - wal
        peak = max((processes.peak_memory_mib(service.pid) for service in services), default=None)
        self._show_statements(label, database)
        check(label, seen, expected, before, self.databases.count(database))
        thousands = max(seen.answered, 1) / 1000
        figures = Figures(
            rate=seen.rate,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            good=seen.good,
            refused=seen.refused,
            service_cpu=cpu["service"] / thousands if services else None,
            postgres_cpu=cpu["postgres"] / thousands,
            generator_cpu=cpu["generator"] / thousands,
            others_percent=max(others, 0) * 100,
            wal_bytes_each=wal / seen.good if expected.writes_each and seen.good else None,
            peak_mib=peak,
        )
        print(f"  {label}: {line(figures)}", flush=True)
        return figures

    def _cpu_seconds(self, services):
        return {
            "service": sum(processes.cpu_seconds(service.pid) for service in services),
            "postgres": processes.cpu_seconds(self.postgres.process.pid),
            "machine": processes.machine_cpu_seconds(),
        }

    def _show_statements(self, label, database):
        if not self.show_statements:
            return
        print(f"\n  top statements of {label}")
        print("  (ms, ms of planning, calls, rows, ms each, WAL bytes each)")
        for row in self.databases.top_statements(database):
            print("  {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}  {}".format(*row))
        print(flush=True)


def line(figures):
    """The figures in a line, for whoever watches."""
    parts = [f"{figures.rate:,.0f}/s"]
    if figures.p99_ms is not None:
        parts.append(f"p50 {figures.p50_ms:.2f} ms, p99 {figures.p99_ms:.2f} ms")
    costs = [
        f"{name} {value:.3f}"
        for name, value in (
            ("service", figures.service_cpu),
            ("postgres", figures.postgres_cpu),
            ("generator", figures.generator_cpu),
        )
        if value is not None
    ]
    parts.append("CPU s/1,000: " + " ".join(costs))
    if figures.wal_bytes_each is not None:
        parts.append(f"{figures.wal_bytes_each:,.0f} WAL bytes each")
    if figures.peak_mib is not None:
        parts.append(f"{figures.peak_mib:.0f} MiB")
    if figures.others_percent > DISTURBED_PERCENT:
        parts.append(f"DISTURBED: others had {figures.others_percent:.0f} % of the machine")
    if figures.refused:
        parts.append(f"{figures.refused:,} refused")
    return "; ".join(parts)


def check(label, seen, expected, before, after):
    """Compares what was answered with what is stored: every answered write is there, and no more
    than those that were under way at the end besides."""
    if seen.good == 0:
        raise BenchError(f"{label}: no good answer")
    if seen.broken:
        raise BenchError(f"{label}: {seen.broken} requests had no answer")
    if seen.refused and not expected.may_refuse:
        raise BenchError(f"{label}: {seen.refused} of {seen.answered} answers were no success")
    least = int(seen.good * expected.writes_each * (1 - expected.repeats))
    most = (seen.good + seen.unfinished) * expected.writes_each
    stored = {
        "order versions": after.order_versions - before.order_versions,
        "order events": after.order_events - before.order_events,
        "customer versions": after.customer_versions - before.customer_versions,
        "customer events": after.customer_events - before.customer_events,
    }
    for what in expected.uncounted:
        del stored[what]
    for what, count in stored.items():
        if not least <= count <= most:
            wanted = f"expected {least} to {most}"
            raise BenchError(f"{label}: {seen.good} good answers, but {count} {what}, {wanted}")
