"""Who holds a workdir: what a lock says of its run, and whether that run is alive."""

import json
import logging
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

LOOKS = 20  # while a lock is waited for
Owner = dict[str, Any]

_NAMES = {"host", "pid", "machine", "process_started", "locked_at"}


def this_process() -> Owner:
    """What the lock of this process says."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": machine(),
        "process_started": _process_started(os.getpid()),
        "locked_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }


def parse(content: bytes) -> Owner | None:
    """What the content of a lock says; None if that is not whole."""
    try:
        held = json.loads(content)
    except ValueError:
        return None
    whole = isinstance(held, dict) and held.keys() >= _NAMES and isinstance(held["pid"], int)
    return held if whole else None


def describe(held: Owner) -> str:
    """For a person; {} is a lock that says nothing."""
    if not held:
        return "a run that did not finish writing its lock"
    return f"process {held['pid']} on {held['host']} since {held['locked_at']}"


def in_use(workdir: str, path: str, held: Owner) -> str:
    """The message that a workdir is taken."""
    return (
        f"--workdir={workdir} is in use by {describe(held)}: wait for that run or end it, or give "
        f"another --workdir (if you know that it is over, remove {path})"
    )


def is_alive(held: Owner) -> bool | None:
    """Whether the process runs; None where it cannot be looked for, since it is elsewhere."""
    if held.get("machine") != machine():
        return None
    return _process_started(held["pid"]) == held["process_started"]


def is_renewed(
    written_at: Callable[[], float], now: float, *, stale: float, path: str, who: str
) -> bool:
    """Whether a lock is renewed by a run that cannot be looked for; waits until it is or is stale.

    Nobody's clock is trusted for longer than `stale`: a lock from the future is waited for that
    long, by the clock that cannot be set.

    Args:
      written_at: when the lock was written or touched last; raises FileNotFoundError if it is gone.
      now: the time by the same clock.
      stale: seconds without renewal that make a lock stale.
      path: of the lock.
      who: its owner.
    """
    first = written_at()
    wait = stale - max(now - first, 0)
    until = time.monotonic() + wait
    if wait > 0:
        log.info("%s: waiting up to %.0f s to see if %s is alive", path, wait, who)
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, stale / LOOKS))
        if written_at() != first:
            return True
    return False


def machine() -> str:
    """Tells where a process number means the same process: this boot of this machine, this
    container."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_started(pid: int) -> str | None:
    """When a process started, in units of the system; None if there is none.

    Numbers of processes are used again, the pair is not.
    """
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                # The name, in brackets, may hold anything.
                state, *fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else fields[18]  # dead, but not asked for yet
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
