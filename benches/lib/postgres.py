"""The private Postgres: default durability, the same settings for every side of a pair."""

import json
import os
import pwd
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from . import processes
from .processes import BenchError

DISTRIBUTION_FOLDERS = "/usr/lib/postgresql"

# Default durability: fsync, full_page_writes and synchronous_commit are not touched.
SETTINGS = {
    "shared_buffers": "1GB",
    # Checkpoints happen where a run asks for one, not somewhere inside a run.
    "max_wal_size": "4GB",
    "min_wal_size": "2GB",
    "checkpoint_timeout": "30min",
    # It would come by in one run and not in another, and for a database that isn't under load.
    # Every run begins vacuumed instead, and none is long enough to need it.
    "autovacuum": "off",
    # What the service's own private Postgres sets.
    "wal_compression": "lz4",
    "max_connections": "200",
    "shared_preload_libraries": "pg_stat_statements",
    "log_min_messages": "error",
}


def find_programs():
    """The folder of the Postgres programs: PG_BIN_DIR, the newest of the distribution, or PATH."""
    if os.environ.get("PG_BIN_DIR"):
        return Path(os.environ["PG_BIN_DIR"])
    installed = Path(DISTRIBUTION_FOLDERS).glob("*/bin/initdb")
    newest = sorted(installed, key=lambda path: float(path.parts[-3]), reverse=True)
    for initdb in newest:
        return initdb.parent
    for folder in os.get_exec_path():
        if Path(folder, "initdb").exists():
            return Path(folder)
    raise BenchError("no Postgres programs: install them or set PG_BIN_DIR")


class Postgres:
    """A server on a folder of ours, for as long as the `with` lasts; its data may be kept."""

    def __init__(self, folder, **settings):
        self.settings = SETTINGS | settings
        self.folder = Path(folder)
        self.bin = find_programs()
        self.data = self.folder / "data"
        self.socket = self.folder / "socket"
        self.log = self.folder / "postgres.log"
        self.process = None
        self.port = None
        # Postgres refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None

    def __enter__(self):
        self._prepare_folder()
        if not (self.data / "PG_VERSION").exists():
            self._create()
        self.port = free_port()
        settings = self.settings | {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.socket,
        }
        arguments = [self.bin / "postgres", "-D", self.data]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        with open(self.log, "w") as log:
            self.process = processes.start(
                arguments, signal.SIGINT, stdout=log, stderr=log, **self._as_owner()
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # SIGINT: fast shutdown, with a checkpoint, so that a kept folder starts at once.
        processes.stop(self.process, signal.SIGINT, patience_s=120)

    def url(self, database):
        """For every side the same way in: the Unix socket."""
        host = quote(str(self.socket), safe="")
        return f"postgres://postgres@localhost:{self.port}/{database}?host={host}"

    def environment(self, database):
        """The same for programs that read PG… variables."""
        return os.environ | {
            "PGHOST": str(self.socket),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
        }

    def query(self, database, statement):
        """Runs SQL (one or more statements) and gives the rows as lists of text."""
        arguments = [self.bin / "psql", "-XqAt", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        out = processes.run(arguments, stdin=statement, env=self.environment(database))
        return [line.split("\t") for line in out.splitlines()]

    def number(self, database, statement):
        """The one number that a query gives."""
        return int(self.query(database, statement)[0][0])

    def version(self):
        """As `postgres --version` says it."""
        return processes.run([self.bin / "postgres", "--version"]).strip()

    def wal_position_bytes(self):
        """How much write-ahead log there ever was."""
        return self.number("postgres", "select pg_current_wal_lsn() - '0/0'::pg_lsn")

    def _as_owner(self):
        if self.user is None:
            return {}
        return {"user": self.user, "group": self.user, "extra_groups": []}

    def _prepare_folder(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)
        for inner in (self.data, self.socket):
            inner.mkdir(exist_ok=True)
            if self.user is not None:
                owner = pwd.getpwnam(self.user)
                os.chown(inner, owner.pw_uid, owner.pw_gid)

    def _create(self):
        arguments = [self.bin / "initdb", "-D", self.data, "--username=postgres", "--auth=trust"]
        arguments += ["--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"]
        processes.run(arguments, cwd=self.folder, **self._as_owner())

    def _wait_until_ready(self):
        arguments = [self.bin / "pg_isready", "-q", "-t", "1"]
        for _ in range(600):
            if self.process.poll() is not None:
                break
            if subprocess.run(arguments, env=self.environment("postgres")).returncode == 0:
                return
        raise BenchError(f"Postgres didn't start:\n{self.log.read_text()[-2000:]}")


def free_port():
    """A port of 127.0.0.1 that nobody uses now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Notes:
    """What was made in a kept work folder, so that a later run need not make it again."""

    def __init__(self, folder):
        self.file = Path(folder) / "made.json"
        self.made = json.loads(self.file.read_text()) if self.file.exists() else {}

    def get(self, name):
        return self.made.get(name)

    def put(self, name, value):
        self.made[name] = value
        self.file.write_text(json.dumps(self.made, indent=1))

    def forget(self, name):
        if self.made.pop(name, None) is not None:
            self.file.write_text(json.dumps(self.made, indent=1))
