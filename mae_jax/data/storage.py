"""Waits for storage that fails for a while: a file server restarts, a disk is remounted.

A failed read is retried with growing pauses. If other files can be read, only this file is lost,
and the error is raised after a few tries. Otherwise the storage is unavailable, and is waited for.
"""

import contextlib
import errno
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from mae_jax.runtime.errors import DataMissing, StorageUnavailable, one_line

log = logging.getLogger(__name__)

_T = TypeVar("_T")

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds between tries; the last one repeats
TRIES = 4  # failed reads of one file, while others can be read, before it counts as lost
SLICE = 0.2  # seconds after which a waiting thread checks for a stop request
QUIET = 60.0  # seconds until a wait is logged again, doubled each time

# Errors about one path rather than the storage.
_PATH_ERRORS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)

_stop_requested: Callable[[], bool] = bool  # False
_waits: "weakref.WeakSet[StorageWait]" = weakref.WeakSet()


@contextlib.contextmanager
def ends_when(asked: Callable[[], bool]) -> Iterator[None]:
    """In this context every wait ends soon after `asked`, called from any thread, becomes true."""
    global _stop_requested
    before, _stop_requested = _stop_requested, asked
    try:
        yield
    finally:
        _stop_requested = before


def stop_requested() -> bool:
    """The current value of the `asked` function of `ends_when`."""
    return _stop_requested()


def is_waited_for() -> bool:
    """Whether any thread of this process waits for storage now."""
    return any(wait.waiting for wait in list(_waits))


def is_away(error: OSError) -> bool:
    """Whether an error means that the storage, rather than one path, cannot be read."""
    return error.errno is not None and error.errno not in _PATH_ERRORS


class StorageWait:
    """Repeats reads until they succeed. Safe to use from any thread.

    Args:
      limit: seconds that a read may take in all.

    Attributes:
      gone: why waiting ended without success; every later read fails at once. None until then.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.gone: StorageUnavailable | None = None
        self._lock = threading.Lock()
        self._began = self._log_at = self._quiet = 0.0
        self._logged = False
        self._threads: set[int] = set()  # waiting now
        _waits.add(self)

    @property
    def waiting(self) -> bool:
        """Whether any thread waits for the storage now."""
        return bool(self._threads)

    def close(self) -> None:
        """Ends every wait: whoever reads now gets StorageUnavailable."""
        with self._lock:
            self.gone = self.gone or StorageUnavailable("the batches are closed")

    def read(self, work: Callable[[], _T], *, what: str, lost: Callable[[OSError], bool]) -> _T:
        """The result of `work`.

        Args:
          work: reads; OSErrors with an errno come from the storage, other errors are raised.
          what: what it reads, for the log.
          lost: whether a failure is about `what` only, while the storage can be read.

        Raises:
          OSError: from `work`, if only `what` is lost.
          StorageUnavailable: the limit has passed, or a stop was requested.
        """
        # Even with a limit of 0: telling a lost file from unavailable storage takes a few tries.
        until, failed = time.monotonic() + max(self.limit, sum(PAUSES[:TRIES])), 0
        try:
            for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
                if self.gone:
                    raise self.gone
                try:
                    return work()
                except OSError as error:
                    if error.errno is None:
                        raise
                    if lost(error):
                        failed += 1
                        if failed == TRIES:
                            raise
                    else:
                        self._wait_for(what, error)
                    self._sleep(pause, until, what, error)
            raise AssertionError  # the pauses have no end
        finally:
            self._leave()

    def _wait_for(self, what: str, error: OSError) -> None:
        """Registers this thread as waiting, and logs it: at first, then less and less often."""
        now = time.monotonic()
        with self._lock:
            if not self._threads:
                self._began = now
            self._threads.add(threading.get_ident())
            if self._logged and now < self._log_at:
                return
            self._quiet = 2 * self._quiet if self._logged else QUIET
            self._logged, self._log_at = True, now + self._quiet
        log.warning(
            "storage: cannot read %s (%s); waiting for it, up to %.0f s in all, %.0f s so far "
            "(--config.data.storage_wait)",
            *(what, _reason(error), self.limit, now - self._began),
        )

    def _leave(self) -> None:
        """Logs the end of the wait when the last thread leaves it."""
        with self._lock:
            self._threads.discard(threading.get_ident())
            if self._threads or self.gone or not self._logged:
                return
            self._logged = False
        log.info("storage: can be read again after %.1f s", time.monotonic() - self._began)

    def _sleep(self, pause: float, until: float, what: str, error: OSError) -> None:
        """Raises StorageUnavailable when there is no time left, or a stop was requested."""
        wake = min(time.monotonic() + pause, until)
        while (left := wake - time.monotonic()) > 0 and not (self.gone or _stop_requested()):
            time.sleep(min(left, SLICE))
        text = f"{what} cannot be read ({_reason(error)})"
        if _stop_requested():
            self._give_up(f"stopped while waiting for storage: {text}")
        if time.monotonic() >= until:
            self._give_up(
                f"storage did not come back within {self.limit:.0f} s: {text}; restore it and run "
                "the same command again (--config.data.storage_wait)"
            )

    def _give_up(self, text: str) -> None:
        with self._lock:
            self.gone = self.gone or StorageUnavailable(text)
        raise self.gone


def patiently(work: Callable[[], _T], *, what: str, limit: float, was_there: bool) -> _T:
    """The result of `work`, which looks for data; repeated while their storage is unavailable.

    Args:
      work: started again after an OSError with an errno.
      what: what it looks for, for the log.
      limit: seconds.
      was_there: whether the data are known to exist; if so, missing data are waited for, too.

    Raises:
      UsageError: from `work`.
      StorageUnavailable: the limit has passed.
    """
    there = was_there

    def look() -> _T:
        nonlocal there
        try:
            return work()
        except OSError as error:
            there |= error.errno is not None
            raise
        except DataMissing as error:
            if not there:
                raise
            raise OSError(errno.ENOENT, str(error)) from error

    def lost(error: OSError) -> bool:
        return not (is_away(error) or isinstance(error, FileNotFoundError))

    return StorageWait(limit).read(look, what=what, lost=lost)


def _reason(error: OSError) -> str:
    return one_line(error.strerror or error)
