"""A failing process ends the others, wherever they are waiting for it.

Inside a compiled step, the other processes wait in uninterruptible code for a process that is gone.
jax ends them once its heartbeat has been missing for a hundred seconds, without giving a reason. So
a failing process publishes its reason in the key-value store, and a thread in every process watches
the store and ends its process when it finds one.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import jax

from mae_jax.distributed.kv_store import KVStore
from mae_jax.runtime import abort
from mae_jax.runtime.errors import FAILED, RunError, UsageError, exit_status, first_line

log = logging.getLogger(__name__)

# Errors that need no traceback: the machine, the disk, or the command is at fault.
EXPECTED = (OSError, UsageError, RunError, FloatingPointError, jax.errors.JaxRuntimeError)
POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0  # process 0 hosts the store, and gives the others this long to read it
CLEANUP_SECONDS = 2.0  # for `before_leaving`, which may hang too, like the disk

_aborting = threading.Lock()  # acquired once, by the first thread that ends this process


@contextlib.contextmanager
def abort_all_on_error(before_leaving: Sequence[Callable[[], None]] = ()) -> Iterator[None]:
    """Context in which an exception in one process ends all processes within seconds.

    Each process logs which one failed and why, and exits with the status of that exception. Calls
    of `runtime.abort` are handled the same way. A run with one process just raises the exception.

    Args:
      before_leaving: called in every process before it exits without unwinding.
    """
    if jax.process_count() == 1:
        yield
        return
    failures, done = _Failures(before_leaving), threading.Event()
    listener = threading.Thread(target=failures.listen, args=(done,), name="fail fast", daemon=True)
    listener.start()
    try:
        with abort.notifying(failures.publish):
            yield
    except Exception as error:
        trace = None if isinstance(error, EXPECTED) else error
        failures.exit(exit_status(error), first_line(error), trace)
    finally:
        done.set()
    listener.join()


class _Failures:
    """Exit statuses and reasons that failing processes publish in the store.

    The reason is empty for a process that ends because of another one.
    """

    def __init__(self, before_leaving: Sequence[Callable[[], None]]):
        self._store, self._before = KVStore("fail_fast"), before_leaving
        self._me = f"process {jax.process_index()} ({socket.gethostname()})"

    def listen(self, done: threading.Event) -> None:
        """Ends this process when another one fails."""
        while not done.wait(POLL_SECONDS):
            if self._read():
                self.exit()

    def exit(
        self, status: int = FAILED, reason: str = "", trace: Exception | None = None
    ) -> NoReturn:
        """Logs who failed and ends this process, without unwinding, which may wait for the others.

        Args:
          status: exit status of this process.
          reason: why it failed; "" if another process did.
          trace: exception whose traceback is logged.
        """
        _aborting.acquire()
        if failed := self._read():  # then the error in this process is only a consequence
            status, reason, trace = next(iter(failed.values()))[0], "", None
        for who, (_, why) in (failed or {self._me: (status, reason)}).items():
            log.critical("%s failed: %s", who, why, exc_info=trace)
        cleanup = threading.Thread(target=lambda: [call() for call in self._before], daemon=True)
        cleanup.start()
        self._write(status, reason)
        cleanup.join(CLEANUP_SECONDS)
        os._exit(status)

    def publish(self, status: int, reason: str) -> None:
        """Tells the others why this process ends; blocks if it is already ending."""
        _aborting.acquire()
        self._write(status, reason)

    def _read(self) -> dict[str, tuple[int, str]]:
        """Status and reason of the processes that failed by themselves."""
        entries = {who: json.loads(text) for who, text in self._store.all().items()}
        return {who: (status, reason) for who, (status, reason) in entries.items() if reason}

    def _write(self, status: int, reason: str) -> None:
        self._store.set(self._me, json.dumps([status, reason]))
        until = time.monotonic() + GRACE_SECONDS
        count = jax.process_count()
        while jax.process_index() == 0 and time.monotonic() < until:
            if len(self._store.all()) >= count:
                return
            time.sleep(POLL_SECONDS / 10)
