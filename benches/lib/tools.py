"""What has to be installed: by the distribution, cargo and npm, and only what is missing."""

import os
import shutil
import subprocess

from . import content, processes

OHA_VERSION = "1.16.0"
FASTIFY_FOLDER = content.FOLDER / "peers" / "fastify"


def install_wrk():
    if shutil.which("wrk"):
        return
    print("installing wrk …", flush=True)
    processes.run(["apt-get", "update"])
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    processes.run(["apt-get", "install", "-y", "--no-install-recommends", "wrk"], env=environment)


def install_oha(folder):
    """Builds oha in a folder, in no hurry; gives the program."""
    program = folder / "bin" / "oha"
    if not program.exists():
        print(f"building oha {OHA_VERSION}, this takes minutes …", flush=True)
        command = ["nice", "-n", "19", "cargo", "install", "oha", "--version", OHA_VERSION]
        processes.run([*command, "--locked", "--root", folder])
    return program


def install_fastify():
    """Installs the peer's packages, as its lock file names them."""
    if not (FASTIFY_FOLDER / "node_modules" / "fastify").exists():
        print("installing the packages of benches/peers/fastify …", flush=True)
        processes.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=FASTIFY_FOLDER)


def versions(folder):
    """Of the programs that are there."""
    # wrk prints its version and exits with 1.
    found = [
        "wrk " + subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split()[1]
    ]
    if (folder / "bin" / "oha").exists():
        found.append(processes.run([folder / "bin" / "oha", "--version"]).strip())
    if shutil.which("node"):
        found.append("node " + processes.run(["node", "--version"]).strip())
    return found
