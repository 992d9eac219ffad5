"""The services under load, started on free ports of 127.0.0.1."""

import os
import re
from pathlib import Path

from . import processes
from .tools import FASTIFY_FOLDER


class Service:
    """An HTTP service of ours, for as long as the `with` lasts."""

    def __init__(self, name, arguments, database, folder, environment):
        self.name = name
        self.arguments = arguments
        self.database = database
        self.log = Path(folder, f"{name}.log")
        # What the shell has must not count.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KEYFOLD_")}
        self.environment = inherited | {"DATABASE_URL": database.url} | environment
        self.process = None
        self.base_url = None

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = processes.start(
                self.arguments, stdout=log, stderr=log, env=self.environment, cwd=self.log.parent
            )
        try:
            line = processes.wait_for_line(self.process, self.log, "serves on http://")
        except BaseException:
            processes.stop(self.process)
            raise
        self.base_url = re.search(r"http://\S+", line).group()
        return self

    def __exit__(self, *_):
        processes.stop(self.process)

    @property
    def pid(self):
        return self.process.pid

    @property
    def port(self):
        return int(self.base_url.rpartition(":")[2])


def keyfold(server, database, folder, name="keyfold", **settings):
    """The release server; settings by their names without the prefix, in lower case."""
    environment = {"KEYFOLD_LISTEN": "127.0.0.1:0", "KEYFOLD_LOG": "warn"}
    for setting, value in settings.items():
        environment[f"KEYFOLD_{setting.upper()}"] = str(value)
    return Service(name, [server, "serve"], database, folder, environment)


def fastify(database, folder):
    """The peer in benches/peers/fastify."""
    return Service("fastify", ["node", FASTIFY_FOLDER / "server.js"], database, folder, {})
