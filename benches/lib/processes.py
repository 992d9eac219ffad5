"""Child processes that never outlive the program, and what they cost: processor time and memory.

Everything is read from /proc, so the harness needs Linux.
"""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """What makes a run worthless: a wrong count, an unexpected status, a program that failed."""


def die_with_parent(stop_signal):
    """A `preexec_fn`: the kernel stops the child when we are killed and can't clean up."""

    def ask_kernel():
        _LIBC.prctl(PR_SET_PDEATHSIG, stop_signal)

    return ask_kernel


def start(arguments, stop_signal=signal.SIGTERM, **options):
    """Starts a process in a session of its own: a Ctrl-C is for us, and we stop it in order."""
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent(stop_signal),
        **options,
    )


def stop(process, stop_signal=signal.SIGTERM, patience_s=20):
    """Ends a process that we started: politely, then for certain."""
    if process.poll() is not None:
        return
    process.send_signal(stop_signal)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(arguments, stdin=None, **options):
    """Runs a command to its end and gives its standard output."""
    arguments = [str(argument) for argument in arguments]
    done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, **options)
    if done.returncode != 0:
        told = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise BenchError(f"{' '.join(arguments)[:300]}\nfailed with {done.returncode}: {told}")
    return done.stdout


def wait_for_line(process, log, wanted, patience_s=30):
    """Waits until a line that contains `wanted` is in the log file, and gives the line."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        for line in Path(log).read_text(errors="replace").splitlines():
            if wanted in line:
                return line
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise BenchError(f"no {wanted!r} in {log}:\n{Path(log).read_text(errors='replace')[-2000:]}")


def _stat(pid):
    """The fields of /proc/PID/stat after the name, or None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _children(pid):
    """The living children of a process, whichever of its threads made them."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def cpu_seconds(pid):
    """Processor time of a process and all its descendants, dead ones included.

    A child that ends between reading it and reading its parent would be missed, so children come
    first and the parent, which inherits their time, last: at worst one is counted a little twice.
    """
    living = sum(cpu_seconds(child) for child in _children(pid))
    fields = _stat(pid)
    if fields is None:
        return living
    utime, stime, children_utime, children_stime = (int(field) for field in fields[11:15])
    return living + (utime + stime + children_utime + children_stime) / TICKS_PER_SECOND


def machine_cpu_seconds():
    """Processor time of everything on this machine, what a hypervisor took away included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def reset_peak_memory(pid):
    """From now on the peak is that of what comes."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except PermissionError as error:
        raise BenchError(f"the peak memory of {pid} can't be reset: {error}") from error


def peak_memory_mib(pid):
    """The most resident memory of a process and its children since the last reset, in MiB."""
    total = sum(peak_memory_mib(child) for child in _children(pid))
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            total += int(line.split()[1]) / 1024
    return total
