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
import threading
import time
from typing import NoReturn

from mae_jax import leaving, lock_owner
from mae_jax.errors import UsageError
from mae_jax.lock_owner import Owner

log = logging.getLogger(__name__)

LOCK, PROBE = "lock.json", ".probe"
PROBE_BYTES = 2**20
TOUCH_SECONDS = 60.0
STALE_SECONDS = 200.0  # three touches, and some
FRESH_SECONDS = 120.0  # after a look, nobody can have taken the lock over: less than stale
GONE_SECONDS = 30.0  # that a folder may be away: renamed by mistake, or its disk has hiccups
WRITING_SECONDS = 5.0  # a lock that is still empty after so long never will be whole
ATTEMPTS = 100  # a lock may be given back at any moment, but not for ever
LOST = 1  # exit status


class Lock:
    """The lock of one workdir, held until `release`.

    Raises:
      UsageError: another run holds it.
      OSError: nothing can be written there.
    """

    def __init__(self, workdir: str):
        self._workdir, self._path = workdir, os.path.join(workdir, LOCK)
        self._mine = lock_owner.this_process()
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
            who = lock_owner.describe(held)
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
                who = lock_owner.describe(held)
                self._lose(f"{self._path} belongs to {who} now: this run ends")

    def _lose(self, why: str) -> NoReturn:
        log.critical("%s", why)
        leaving.leave(LOST, why)  # what two runs write is worth nothing

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
    alive = lock_owner.is_alive(held)
    if alive is None:
        alive = _is_touched(workdir, path, handle, lock_owner.describe(held))
    if not _is_at(path, handle):
        return None
    if alive:
        raise UsageError(lock_owner.in_use(workdir, path, held))
    return held


def _is_touched(workdir: str, path: str, handle: int, who: str) -> bool:
    """Whether a lock is renewed, by a run that cannot be looked for from here."""

    def touched_at() -> float:
        if not _is_at(path, handle):
            raise FileNotFoundError(path)
        return os.fstat(handle).st_mtime

    try:
        return lock_owner.is_renewed(
            touched_at, probe(workdir, 1), stale=STALE_SECONDS, path=path, who=who
        )
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
    return lock_owner.parse(os.pread(handle, 2**16, 0))


def _is_at(path: str, handle: int) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def probe(workdir: str, size: int = PROBE_BYTES) -> float:
    """Writes a file into the folder, and removes it; when that was, by the file server's clock."""
    path = os.path.join(workdir, PROBE)
    try:
        with open(path, "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
