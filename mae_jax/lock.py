"""The lock of a workdir on a disk, so that two runs never write it: `<workdir>/lock.json`.

A run that is over, however it ended, does not keep the next one out: on the same machine the
process is looked for; another machine's lock counts as long as it is touched, which its run does
every minute. (Both times are the file server's, whatever the clocks of the machines say.)
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time

from mae_jax import lock_owner
from mae_jax.errors import UsageError
from mae_jax.lock_owner import Owner

log = logging.getLogger(__name__)

LOCK, PROBE = "lock.json", ".probe"
PROBE_BYTES = 2**20
TOUCH_SECONDS = 60.0
STALE_SECONDS = 200.0  # three touches, and some
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

    def _acquire(self) -> None:
        for _ in range(ATTEMPTS):
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if self._take_over():
                    return
                continue
            self._write(handle)
            return
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
            os.ftruncate(handle, 0)
            self._write(handle)
            handle = -1
            return True
        finally:
            if handle >= 0:
                os.close(handle)

    def _write(self, handle: int) -> None:
        """Writes our name through a file handle, and closes it."""
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(self._mine, file, indent=2)
            file.flush()
            os.fsync(file.fileno())

    def _keep_fresh(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            try:
                held = self._read()
                if held == self._mine:
                    self._renew()
                    continue
            except OSError as error:  # a file server may be away for a while
                log.warning("%s cannot be renewed: %s", self._path, error)
                continue
            if held is None:
                log.warning("%s is gone: a second run could start there", self._path)
                return
            who = lock_owner.describe(held)
            log.critical("%s belongs to %s now: this run ends", self._path, who)
            os._exit(LOST)  # what two runs write is worth nothing

    # What differs in a bucket.

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
    first, said = os.fstat(handle).st_mtime, False
    while _is_at(path, handle) and probe(workdir) - first <= STALE_SECONDS:
        if os.fstat(handle).st_mtime != first:
            return True
        if not said:
            log.info("%s: waiting up to %.0f s to see if %s is alive", path, STALE_SECONDS, who)
        said = True
        time.sleep(STALE_SECONDS / 200)
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


def probe(workdir: str) -> float:
    """Writes a file into the folder, and removes it; its time of writing."""
    path = os.path.join(workdir, PROBE)
    try:
        with open(path, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
