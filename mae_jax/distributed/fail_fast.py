"""A process that fails ends the others, wherever they wait for it.

In the middle of a compiled step nobody can be asked any more: the others wait, in code that nothing
interrupts, for one that will not come. jax ends them when its heartbeat was missing for a hundred
seconds, and cannot say why it was. So a thread in every process looks into the `store` for last
words, and ends its process when it finds some.
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

# What needs no traceback: the machine, the disk or the command is at fault, not this program.
EXPECTED = (OSError, UsageError, RunError, FloatingPointError, jax.errors.JaxRuntimeError)
LOOK_SECONDS = 0.5
LEAVE_SECONDS = 10.0  # that process 0, which has the store, gives the others to look into it
CLEAN_SECONDS = 2.0  # for what is called before leaving: a disk that hangs may be the reason

_leaving = threading.Lock()  # taken once, by the first thread of this process that ends it


@contextlib.contextmanager
def abort_all_on_error(before_leaving: Sequence[Callable[[], None]] = ()) -> Iterator[None]:
    """Around what all processes do together: an exception in one ends all of them, within seconds.

    Each says which process failed and why, and has the status that the exception stands for. The
    same for what calls `leaving.leave` meanwhile. A process that is alone just lets the exception
    pass.

    Args:
      before_leaving: called, in any process, before it is ended without unwinding.
    """
    if jax.process_count() == 1:
        yield
        return
    last_words, over = _LastWords(before_leaving), threading.Event()
    listener = threading.Thread(target=last_words.listen, args=(over,), name="failing", daemon=True)
    listener.start()
    try:
        with leaving.telling(last_words.say):
            yield
    except Exception as error:
        trace = None if isinstance(error, EXPECTED) else error
        last_words.leave(exit_status(error), first_line(error), trace)
    finally:
        over.set()
    listener.join()


class _LastWords:
    """What the processes of a run leave in the store: by process, its exit status and why it ends.

    One that ends because of another has no reason of its own: its "why" is empty.
    """

    def __init__(self, before_leaving: Sequence[Callable[[], None]]):
        self._store, self._before = KVStore("failing"), before_leaving
        self._me = f"process {jax.process_index()} ({socket.gethostname()})"

    def listen(self, over: threading.Event) -> None:
        """Ends this process when another one fails."""
        while not over.wait(LOOK_SECONDS):
            if self._failures():
                self.leave()

    def leave(
        self, status: int = FAILED, why: str = "", trace: Exception | None = None
    ) -> NoReturn:
        """Says who failed and ends this process, without unwinding: that may wait for the others.

        Args:
          status: of this process.
          why: it failed; "" where another one did.
          trace: is logged too.
        """
        _leaving.acquire()
        if said := self._failures():  # then what broke here is the absence of that process
            status, why, trace = next(iter(said.values()))[0], "", None
        for who, (_, reason) in (said or {self._me: (status, why)}).items():
            log.critical("%s failed: %s", who, reason, exc_info=trace)
        cleaning = threading.Thread(target=lambda: [call() for call in self._before], daemon=True)
        cleaning.start()
        self._tell(status, why)
        cleaning.join(CLEAN_SECONDS)
        os._exit(status)

    def say(self, status: int, why: str) -> None:
        """Tells the others why this process ends, unless it is ending already."""
        _leaving.acquire()
        self._tell(status, why)

    def _failures(self) -> dict[str, tuple[int, str]]:
        """Status and reason of the processes that failed by themselves."""
        words = {who: json.loads(text) for who, text in self._store.all().items()}
        return {who: (status, why) for who, (status, why) in words.items() if why}

    def _tell(self, status: int, why: str) -> None:
        self._store.set(self._me, json.dumps([status, why]))
        until = time.monotonic() + LEAVE_SECONDS
        count = jax.process_count()
        while jax.process_index() == 0 and time.monotonic() < until:
            if len(self._store.all()) >= count:
                return
            time.sleep(LOOK_SECONDS / 10)
