"""The lock of a workdir on a disk, so that two runs never write it: `<workdir>/lock.json`.

A run that is over, however it ended, does not keep the next one out: on the same machine the
process is looked for; another machine's lock counts as long as it is touched, which its run does
every minute. A run looks at its lock at the same time, and before it saves: if another run has it
by now, or the folder was renamed or deleted, it ends before it writes anything more.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from mae_jax.runtime import filesystem, leaving
from mae_jax.runtime.errors import FAILED, UsageError

log = logging.getLogger(__name__)
LOCK = "lock.json"
TOUCH_SECONDS = 60.0
STALE_SECONDS = 200.0  # three touches, and some
FRESH_SECONDS = 120.0  # after a look, nobody can have taken the lock over: less than stale
GONE_SECONDS = 30.0  # that a folder may be away: renamed by mistake, or its disk has hiccups
WRITING_SECONDS = 5.0  # a lock that is still empty after so long never will be whole
ATTEMPTS = 100  # a lock may be released at any moment, but not endlessly
LOOKS = 20  # while a lock is waited for
Owner = dict[str, Any]
_NAMES = {"host", "pid", "machine", "process_started", "locked_at"}


class Lock:
    """The lock of one workdir, held until `release`.

    Raises:
      UsageError: another run holds it.
      OSError: nothing can be written there.
    """

    def __init__(self, workdir: str):
        self._workdir, self._path = workdir, os.path.join(workdir, LOCK)
        self._mine = this_process()
        self._acquire()
        self._folder = self._open_folder()
        self._looking = threading.Lock()
        self._looked = (time.monotonic(), time.time())
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="workdir lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the workdir back."""
        self._released.set()
        self._thread.join()
        try:
            if self._read() == self._mine:
                self._remove()
        except OSError as error:  # the next run finds that this process is gone
            log.warning("%s cannot be removed: %s", self._path, error)
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def ensure_held(self, *, now: bool) -> None:
        """Ends this process if the workdir is no longer its own.

        Args:
          now: look, even if the last look is so recent that nobody can have taken the lock over.
        """
        # A paused machine may stop either of the clocks, and one that is set moves the other.
        steady, wall = self._looked
        age = max(time.monotonic() - steady, abs(time.time() - wall))
        if not now and age < FRESH_SECONDS:
            return
        try:
            self._look()
        except OSError as error:  # a file server may be away for a while
            log.warning("%s cannot be read: %s", self._path, error)

    def _acquire(self) -> None:
        for _ in range(ATTEMPTS):
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if self._take_over():
                    return
                continue
            try:
                self._write(handle)
                return
            except OSError:  # an empty lock would keep the next start waiting
                self._remove()
                raise
            finally:
                os.close(handle)
        raise UsageError(f"{self._path} can be neither made nor read: remove it")

    def _take_over(self) -> bool:
        """Overwrites a lock that nobody holds; False if it is gone, so that one may try again.

        Raises:
          UsageError: somebody holds it.
        """
        try:
            handle = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            # Of several that find the same old lock one decides at a time.
            with contextlib.suppress(OSError):  # some network file systems cannot
                fcntl.flock(handle, fcntl.LOCK_EX)
            held = _wait_until_stale(self._workdir, self._path, handle)
            if held is None:
                return False
            who = describe(held)
            log.warning("%s is left over from %s: taken over", self._path, who)
            self._write(handle)
            return True
        finally:
            os.close(handle)

    def _write(self, handle: int) -> None:
        """Writes our name into an open file."""
        with open(handle, "wb", closefd=False) as file:
            file.write(json.dumps(self._mine, indent=2).encode())
            file.truncate()
            os.fsync(file.fileno())

    def _keep_fresh(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            try:
                self._look()
                self._renew()
            except OSError as error:  # a file server may be away for a while
                log.warning("%s cannot be renewed: %s", self._path, error)

    def _look(self) -> None:
        """Ends this process if the lock is another's, or the folder is no longer at its path."""
        with self._looking:
            self._looked = (time.monotonic(), time.time())
            until = time.monotonic() + GONE_SECONDS
            while (held := self._read()) is None and not self._put_back():
                if time.monotonic() > until:
                    self._lose(f"{self._what_happened()}: this run ends, not to write two folders")
                time.sleep(GONE_SECONDS / 60)
            if held not in (None, self._mine):
                who = describe(held)
                self._lose(f"{self._path} belongs to {who} now: this run ends")

    def _lose(self, why: str) -> NoReturn:
        log.critical("%s", why)
        leaving.leave(FAILED, why)  # what two runs write is worth nothing

    def _what_happened(self) -> str:
        """To a folder that is no longer at its path; Linux tells where it is."""
        try:
            place = os.readlink(f"/proc/self/fd/{self._folder}")
        except OSError:
            place = ""
        if place.endswith(" (deleted)"):
            return f"--workdir={self._workdir} was deleted"
        if not place or place == self._workdir:
            return f"--workdir={self._workdir} was deleted or renamed"
        return f"--workdir={self._workdir} was renamed (continue with --workdir={place})"

    # What differs in a bucket.

    def _open_folder(self) -> int | None:
        """A handle that stays with the folder when it is renamed."""
        return os.open(self._workdir, os.O_RDONLY)

    def _put_back(self) -> bool:
        """Makes the lock again if only its file was removed; False if the folder is gone."""
        assert self._folder is not None
        try:
            if not os.path.samestat(os.stat(self._workdir), os.fstat(self._folder)):
                return False
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileNotFoundError, FileExistsError):
            return False
        try:
            self._write(handle)
        finally:
            os.close(handle)
        log.warning("%s was removed: made again", self._path)
        return True

    def _read(self) -> Owner | None:
        """What the lock says, {} if it says nothing; None where there is none."""
        return _read(self._path)

    def _renew(self) -> None:
        os.utime(self._path)

    def _remove(self) -> None:
        os.unlink(self._path)


def _wait_until_stale(workdir: str, path: str, handle: int) -> Owner | None:
    """What an abandoned lock says; None if it is removed meanwhile.

    Raises:
      UsageError: its run is alive.
    """
    held, began = _parse(handle), time.monotonic()
    while held is None and time.monotonic() - began < WRITING_SECONDS:
        time.sleep(0.05)  # it is being written
        held = _parse(handle)
    held = held or {}
    alive = is_alive(held)
    if alive is None:
        alive = _is_touched(workdir, path, handle, describe(held))
    if not _is_at(path, handle):
        return None
    if alive:
        raise UsageError(in_use(workdir, path, held))
    return held


def _is_touched(workdir: str, path: str, handle: int, who: str) -> bool:
    """Whether a lock is renewed, by a run that cannot be looked for from here."""

    def touched_at() -> float:
        if not _is_at(path, handle):
            raise FileNotFoundError(path)
        return os.fstat(handle).st_mtime

    try:
        now = filesystem.probe(workdir, 1)
        return is_renewed(touched_at, now, stale=STALE_SECONDS, path=path, who=who)
    except FileNotFoundError:  # given back
        return False


def _read(path: str) -> Owner | None:
    """What a lock file says; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _parse(handle) or {}
    finally:
        os.close(handle)


def _parse(handle: int) -> Owner | None:
    """What an open lock file says; None if that is not whole."""
    return parse(os.pread(handle, 2**16, 0))


def _is_at(path: str, handle: int) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


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
