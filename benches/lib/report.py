"""The tables that are printed and kept: medians, spread, ratios, costs, and their origin."""

import datetime
import hashlib
import platform
import statistics
from pathlib import Path

from . import processes
from .processes import BenchError


class Row:
    """One line of the result: two sides, round by round, and what to reach."""

    def __init__(self, measure, what, unit, must=None, aim=None, better="higher", goal="ratio"):
        self.measure, self.what, self.unit = measure, what, unit
        # The goals are about the ratio, or about our own value.
        self.must, self.aim, self.better, self.goal = must, aim, better, goal
        self.ours, self.theirs, self.ratios = [], [], []
        self.note = ""

    def add(self, ours, theirs=None, ratio=None):
        """One round; without a ratio of its own it is ours by theirs."""
        self.ours.append(ours)
        if theirs is not None:
            self.theirs.append(theirs)
            self.ratios.append(ours / theirs if ratio is None else ratio)

    def verdict(self):
        """Whether the median reaches what it must and what it aims at."""
        values = self.ratios if self.goal == "ratio" else self.ours
        if self.must is None or not values:
            return ""
        if self.aim is not None and self._reaches(self.aim, values):
            return "aim"
        return "must" if self._reaches(self.must, values) else "**misses must**"

    def _reaches(self, goal, values):
        value = statistics.median(values)
        return value >= goal if self.better == "higher" else value <= goal

    def cells(self):
        sign = "≥" if self.better == "higher" else "≤"
        goals = ["" if goal is None else f"{sign} {goal:g}" for goal in (self.must, self.aim)]
        return [
            self.measure,
            self.what,
            spread(self.ours, self.unit),
            spread(self.theirs, self.unit),
            spread(self.ratios, "", digits=2),
            *goals,
            self.verdict(),
        ]


def spread(values, unit, digits=None):
    """The median and, in brackets, the least and the most."""
    if not values:
        return "–"
    shown = [
        number(value, digits) for value in (statistics.median(values), min(values), max(values))
    ]
    return f"{shown[0]}{unit} ({shown[1]}–{shown[2]})"


def number(value, digits=None):
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


class Report:
    """Collects the rows and figures of a program's run and writes them as Markdown."""

    def __init__(self):
        self.rows = []
        self.costs = {}
        self.failures = []

    def row(self, *arguments, **options):
        row = Row(*arguments, **options)
        self.rows.append(row)
        return row

    def cost(self, measure, side, figures):
        self.costs.setdefault((measure, side), []).append(figures)

    def markdown(self, origin):
        lines = [f"* {line}" for line in origin]
        lines += [f"* **FAILED** {failure}" for failure in self.failures]
        head = ["", "what", "keyfold", "against", "ratio", "must", "aim", "reaches"]
        lines += ["", *table(head, [row.cells() for row in self.rows])]
        notes = [f"{row.measure}, {row.what}: {row.note}" for row in self.rows if row.note]
        lines += ["", *(f"* {note}" for note in notes)] if notes else []
        lines += [
            "",
            "Medians (least–most) of the rounds; ratios are medians of the rounds' ratios.",
        ]
        lines += ["", "Processor seconds are for 1,000 answers.", ""]
        head = [
            "",
            "side",
            "answers/s",
            "p50 ms",
            "p99 ms",
            "service s",
            "Postgres s",
            "generator s",
            "others %",
            "WAL bytes a write",
            "peak MiB",
            "refused",
        ]
        cells = [self._cost_cells(*key, runs) for key, runs in self.costs.items()]
        return "\n".join(lines + table(head, cells)) + "\n"

    @staticmethod
    def _cost_cells(measure, side, runs):
        def middle(name, digits=None):
            values = [getattr(run, name) for run in runs if getattr(run, name) is not None]
            return number(statistics.median(values), digits) if values else "–"

        return [
            measure,
            side,
            middle("rate"),
            middle("p50_ms", 2),
            middle("p99_ms", 2),
            middle("service_cpu", 3),
            middle("postgres_cpu", 3),
            middle("generator_cpu", 3),
            middle("others_percent", 0),
            middle("wal_bytes_each", 0),
            middle("peak_mib", 0),
            middle("refused", 0),
        ]


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def origin(repository, command, postgres, server, versions):
    """Where the figures come from: date, commit, command, machine, programs."""
    commit = _git(repository, "rev-parse", "--short=12", "HEAD")
    digest = hashlib.sha256(Path(server).read_bytes()).hexdigest()[:12]
    dirty = " with uncommitted changes" if _git(repository, "status", "--porcelain", "-uno") else ""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    now = datetime.datetime.now(datetime.UTC)
    memory_gib = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return [
        f"{now:%Y-%m-%d %H:%M} UTC, commit {commit}{dirty}",
        f"`{command}`",
        f"{cores} cores ({cpu}), {memory_gib:.0f} GiB, Linux {platform.release()}",
        f"{postgres.version()}; server {server.name} (SHA-256 {digest}…); {', '.join(versions)}",
    ]


def _git(repository, *arguments):
    try:
        return processes.run(["git", "-C", repository, *arguments]).strip()
    except (BenchError, FileNotFoundError):
        return "unknown"
