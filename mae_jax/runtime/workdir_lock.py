"""The lock of a workdir on a disk, `<workdir>/lock.json`: only one run may write there.

A finished or killed run does not block the next one. On the same machine, its process is looked up;
a lock from another machine is valid as long as it is touched, which its run does every minute. A
run also checks its lock every minute and before it saves. If another run has taken it over, or the
folder was renamed or deleted, the run ends before writing anything else.
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

from mae_jax.runtime import abort, filesystem
from mae_jax.runtime.errors import FAILED, UsageError

log = logging.getLogger(__name__)
LOCK = "lock.json"
TOUCH_SECONDS = 60.0
STALE_SECONDS = 200.0  # three missed touches, and a margin
FRESH_SECONDS = 120.0  # a lock checked this recently cannot have been taken over yet
GONE_SECONDS = 30.0  # how long the folder may be missing: renamed by mistake, or a disk hiccup
WRITING_SECONDS = 5.0  # a lock that is still incomplete after this will never be completed
ATTEMPTS = 100  # to acquire a lock that others keep releasing
POLLS = 20  # while waiting for a lock to become stale
Owner = dict[str, Any]
_NAMES = {"host", "pid", "machine", "process_started", "locked_at"}


class Lock:
    """The lock of a workdir, held until `release`.

    Raises:
      UsageError: another run holds it.
      OSError: the workdir is not writable.
    """

    def __init__(self, workdir: str):
        self._workdir, self._path = workdir, os.path.join(workdir, LOCK)
        self._mine = this_process()
        self._acquire()
        self._folder = self._open_folder()
        self._checking = threading.Lock()
        self._checked = (time.monotonic(), time.time())
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="workdir lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Releases the workdir."""
        self._released.set()
        self._thread.join()
        try:
            if self._read() == self._mine:
                self._remove()
        except OSError as error:  # the next run will find that this process is gone
            log.warning("%s cannot be removed: %s", self._path, error)
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def ensure_held(self, *, now: bool) -> None:
        """Ends this process if the workdir is no longer its own.

        Args:
          now: check even if the last check is so recent that no run can have taken the lock over.
        """
        # A suspended machine may stop one clock, and setting the time moves the other.
        steady, wall = self._checked
        age = max(time.monotonic() - steady, abs(time.time() - wall))
        if not now and age < FRESH_SECONDS:
            return
        try:
            self._check()
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
            except OSError:  # an empty lock would make the next start wait
                self._remove()
                raise
            finally:
                os.close(handle)
        raise UsageError(f"{self._path} can be neither created nor read: remove it")

    def _take_over(self) -> bool:
        """Overwrites a lock that nobody holds; False if it is gone, so that the caller retries.

        Raises:
          UsageError: another run holds it.
        """
        try:
            handle = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            # Only one of several starts that found the same stale lock may proceed at a time.
            with contextlib.suppress(OSError):  # unsupported by some network file systems
                fcntl.flock(handle, fcntl.LOCK_EX)
            owner = _wait_until_stale(self._workdir, self._path, handle)
            if owner is None:
                return False
            log.warning("%s is left over from %s: taken over", self._path, describe(owner))
            self._write(handle)
            return True
        finally:
            os.close(handle)

    def _write(self, handle: int) -> None:
        """Writes this process as the owner into an open file."""
        with open(handle, "wb", closefd=False) as file:
            file.write(json.dumps(self._mine, indent=2).encode())
            file.truncate()
            os.fsync(file.fileno())

    def _keep_fresh(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            try:
                self._check()
                self._renew()
            except OSError as error:  # a file server may be away for a while
                log.warning("%s cannot be renewed: %s", self._path, error)

    def _check(self) -> None:
        """Ends this process if another run has the lock, or the folder is no longer at its path."""
        with self._checking:
            self._checked = (time.monotonic(), time.time())
            until = time.monotonic() + GONE_SECONDS
            while (owner := self._read()) is None and not self._restore():
                if time.monotonic() > until:
                    self._abort(f"{self._what_happened()}: this run ends before it writes more")
                time.sleep(GONE_SECONDS / 60)
            if owner not in (None, self._mine):
                self._abort(f"{self._path} now belongs to {describe(owner)}: this run ends")

    def _abort(self, reason: str) -> NoReturn:
        log.critical("%s", reason)
        abort.abort(FAILED, reason)  # two runs in one folder would corrupt it

    def _what_happened(self) -> str:
        """Describes why the folder is no longer at its path; on Linux also where it is now."""
        try:
            place = os.readlink(f"/proc/self/fd/{self._folder}")
        except OSError:
            place = ""
        if place.endswith(" (deleted)"):
            return f"--workdir={self._workdir} was deleted"
        if not place or place == self._workdir:
            return f"--workdir={self._workdir} was deleted or renamed"
        return f"--workdir={self._workdir} was renamed (continue with --workdir={place})"

    # Overridden for buckets.

    def _open_folder(self) -> int | None:
        """A file descriptor that follows the folder when it is renamed."""
        return os.open(self._workdir, os.O_RDONLY)

    def _restore(self) -> bool:
        """Recreates the lock if only its file was removed; False if the folder is gone."""
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
        log.warning("%s was removed: created again", self._path)
        return True

    def _read(self) -> Owner | None:
        """The lock's owner, {} if the file is incomplete; None if there is no lock."""
        return _read(self._path)

    def _renew(self) -> None:
        os.utime(self._path)

    def _remove(self) -> None:
        os.unlink(self._path)


def _wait_until_stale(workdir: str, path: str, handle: int) -> Owner | None:
    """The owner of an abandoned lock; None if the lock is removed while waiting.

    Raises:
      UsageError: its run is alive.
    """
    owner, start = _parse(handle), time.monotonic()
    while owner is None and time.monotonic() - start < WRITING_SECONDS:
        time.sleep(0.05)  # it is being written
        owner = _parse(handle)
    owner = owner or {}
    alive = is_alive(owner)
    if alive is None:
        alive = _is_touched(workdir, path, handle, describe(owner))
    if not _is_at(path, handle):
        return None
    if alive:
        raise UsageError(in_use(workdir, path, owner))
    return owner


def _is_touched(workdir: str, path: str, handle: int, who: str) -> bool:
    """Whether a lock is being renewed by a run whose process cannot be looked up from here."""

    def touched_at() -> float:
        if not _is_at(path, handle):
            raise FileNotFoundError(path)
        return os.fstat(handle).st_mtime

    try:
        now = filesystem.probe(workdir, 1)
        return is_renewed(touched_at, now, stale=STALE_SECONDS, path=path, who=who)
    except FileNotFoundError:  # released
        return False


def _read(path: str) -> Owner | None:
    """The owner in a lock file; None if there is no file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _parse(handle) or {}
    finally:
        os.close(handle)


def _parse(handle: int) -> Owner | None:
    """The owner in an open lock file; None if it is incomplete."""
    return parse(os.pread(handle, 2**16, 0))


def _is_at(path: str, handle: int) -> bool:
    """Whether an open file is still at this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def this_process() -> Owner:
    """The owner entry of this process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": machine(),
        "process_started": _process_started(os.getpid()),
        "locked_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }


def parse(content: bytes) -> Owner | None:
    """The owner in the content of a lock file; None if it is incomplete."""
    try:
        owner = json.loads(content)
    except ValueError:
        return None
    valid = isinstance(owner, dict) and owner.keys() >= _NAMES and isinstance(owner["pid"], int)
    return owner if valid else None


def describe(owner: Owner) -> str:
    """Human-readable owner; {} means the lock file was incomplete."""
    if not owner:
        return "a run that did not finish writing its lock"
    return f"process {owner['pid']} on {owner['host']} since {owner['locked_at']}"


def in_use(workdir: str, path: str, owner: Owner) -> str:
    """The error message for a workdir that another run is using."""
    return (
        f"--workdir={workdir} is in use by {describe(owner)}: wait for that run or stop it, or use "
        f"another --workdir (if you know that the run is over, remove {path})"
    )


def is_alive(owner: Owner) -> bool | None:
    """Whether the process is running; None if it is on another machine or in another container."""
    if owner.get("machine") != machine():
        return None
    return _process_started(owner["pid"]) == owner["process_started"]


def is_renewed(
    written_at: Callable[[], float], now: float, *, stale: float, path: str, who: str
) -> bool:
    """Waits until a lock is renewed (True) or becomes stale (False).

    For a run whose process cannot be looked up. The wait is limited to `stale` seconds of the
    monotonic clock, so a lock dated in the future is no exception.

    Args:
      written_at: when the lock was last written or touched; raises FileNotFoundError if it is gone.
      now: the time by the same clock.
      stale: seconds without renewal after which a lock is stale.
      path: path of the lock.
      who: description of its owner.
    """
    first = written_at()
    wait = stale - max(now - first, 0)
    until = time.monotonic() + wait
    if wait > 0:
        log.info("%s: waiting up to %.0f s to find out whether %s is alive", path, wait, who)
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, stale / POLLS))
        if written_at() != first:
            return True
    return False


def machine() -> str:
    """Identifies the scope of process IDs: this boot of this machine, this container."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_started(pid: int) -> str | None:
    """When a process started, in units of the system; None if it does not exist.

    Process IDs are reused; the ID together with the start time is unique.
    """
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                # The name, in parentheses, may contain anything.
                state, *fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else fields[18]  # a zombie
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
