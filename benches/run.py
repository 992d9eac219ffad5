#!/usr/bin/env python3
"""Measures the service against its peers on this machine; `benches/README.md` tells what and why.

    python3 benches/run.py [P1 P2 …] [--quick] [--seconds 10] [--rounds 3] …

Starts everything it needs on temporary folders and free ports, prints Markdown, and cleans up.
"""

import argparse
import contextlib
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from lib import tools
from lib.bench import Bench
from lib.databases import Databases
from lib.measured import Recorder
from lib.measures import MEASURES
from lib.postgres import Notes, Postgres
from lib.processes import BenchError
from lib.report import Report, origin

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS_FOLDER = REPOSITORY / "target" / "bench-tools"


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measures", nargs="*", metavar="P1 … P11", help="none: all of them")
    parser.add_argument("--seconds", type=int, default=10, help="length of a run (10)")
    parser.add_argument("--warm-up", type=int, default=5, help="seconds before the first round (5)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (3)")
    parser.add_argument(
        "--server",
        default=REPOSITORY / "target/release/keyfold",
        type=Path,
        help="the binary under test (target/release/keyfold)",
    )
    parser.add_argument(
        "--orders",
        dest="orders_file",
        type=Path,
        help="NDJSON of real orders (.gz or not), for P5 and for P1's second profile",
    )
    parser.add_argument(
        "--preload", dest="orders", type=int, help="orders in the table (1,000,000)"
    )
    parser.add_argument("--quick", action="store_true", help="little data: shows that it works")
    parser.add_argument("--only", choices=["keyfold"], help="leave the peers out")
    parser.add_argument("--profile", action="store_true", help="top statements of each run")
    parser.add_argument("--work-dir", type=Path, help="where the databases live (temporary)")
    parser.add_argument("--keep", action="store_true", help="leave the work folder for a later run")
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    options = parser.parse_args()
    unknown = [name for name in options.measures if name.upper() not in MEASURES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    if options.keep and not options.work_dir:
        parser.error("--keep needs --work-dir")
    options.measures = [name.upper() for name in options.measures] or list(MEASURES)
    if not options.orders_file and "P5" in options.measures:
        if options.measures != list(MEASURES):
            parser.error("P5 needs real orders: --orders FILE")
        print("P5 is left out: it needs real orders, --orders FILE", flush=True)
        options.measures.remove("P5")
    options.orders = options.orders or (50_000 if options.quick else 1_000_000)
    options.tools = TOOLS_FOLDER
    options.server = options.server.resolve()
    if not options.server.exists():
        parser.error(f"{options.server} is missing: cargo build --release")
    return options


@contextlib.contextmanager
def work_folder(options):
    """Where everything of this run lives; gone at the end unless it is to be kept."""
    if options.work_dir:
        folder = options.work_dir.resolve()
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="keyfold-bench-"))
    # The private Postgres runs as a user of its own and has to reach its folder.
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def raise_file_limit():
    """Thousands of connections need as many open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def measure(options, folder):
    """Runs the measures that were asked for; gives the report's text and what failed."""
    tools.install_wrk()
    report = Report()
    # Costs something, so only where statements are to be shown.
    settings = {"pg_stat_statements.track_planning": "on"} if options.profile else {}
    with Postgres(folder / "postgres", **settings) as postgres:
        databases = Databases(postgres, Notes(folder), options.server)
        recorder = Recorder(postgres, databases, options.profile)
        bench = Bench(options, postgres, databases, recorder, report, folder)
        for name in options.measures:
            print(f"{name}: {MEASURES[name].__doc__}", flush=True)
            try:
                MEASURES[name](bench)
            except BenchError as error:
                print(f"FAILED {name}: {error}", file=sys.stderr, flush=True)
                report.failures.append(f"{name}: {error}")
        # Where files lie on this machine is nobody's concern.
        said = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
        command = shlex.join(["python3", "benches/run.py", *said])
        told = origin(REPOSITORY, command, postgres, options.server, tools.versions(options.tools))
    return report.markdown(told), report.failures


def main():
    options = read_arguments()
    # Being stopped is an exception like any other: everything is cleaned up on its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        raise_file_limit()
        with work_folder(options) as folder:
            text, failures = measure(options, folder)
    except BenchError as error:
        sys.exit(f"FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print("\n" + text)
    if options.out:
        options.out.write_text(text)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
