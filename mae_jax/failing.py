"""A process that fails ends the others, wherever they wait for it.

In the middle of a compiled step nobody can be asked any more: the others wait, in code that nothing
interrupts, for one that will not come. jax ends them when its heartbeat was missing for a hundred
seconds, and cannot say why it was. So a thread in every process looks into the `store` for last
words, and ends its process when it finds some.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from mae_jax.errors import RunError, UsageError
from mae_jax.store import Service

log = logging.getLogger(__name__)

# What needs no traceback: the machine, the disk or the command is at fault, not this program.
EXPECTED = (OSError, UsageError, RunError, jax.errors.JaxRuntimeError)
LOOK_SECONDS = 0.5
LEAVE_SECONDS = 10.0  # that process 0, which has the store, gives the others to look into it
FAILED = 1  # exit status

_leaving = threading.Lock()  # taken once, by the first thread of this process that ends it


@contextlib.contextmanager
def ends_all() -> Iterator[None]:
    """Around what all processes do together: an exception in one ends all of them, at once.

    The status is `FAILED`, and each says which process failed and why. A process that is alone just
    lets the exception pass.
    """
    if jax.process_count() == 1:
        yield
        return
    store, over = Service("failing"), threading.Event()
    listener = threading.Thread(target=_listen, args=(store, over), name="failing", daemon=True)
    listener.start()
    try:
        yield
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        trace = None if isinstance(error, EXPECTED) else error
        _leave(store, text.splitlines()[0], trace)
    finally:
        over.set()
    listener.join()


def _listen(store: Service, over: threading.Event) -> None:
    while not over.wait(LOOK_SECONDS):
        if store.all():
            _leave(store)


def _leave(store: Service, words: str = "", trace: Exception | None = None) -> NoReturn:
    """Says who failed and ends this process: without unwinding, which may wait for the others.

    Args:
      store: gets the last words.
      words: why this process failed; "" where another one did.
      trace: is logged too.
    """
    _leaving.acquire()
    me = jax.process_index()
    mine = f"process {me} ({socket.gethostname()})"
    said = {who: why for who, why in store.all().items() if why}
    if said:  # then what broke here is the absence of that process
        words, trace = "", None
    for who, why in (said or {mine: words}).items():
        log.critical("%s failed: %s", who, why, exc_info=trace)
    store.set(mine, words)
    until = time.monotonic() + LEAVE_SECONDS
    while me == 0 and len(store.all()) < jax.process_count() and time.monotonic() < until:
        time.sleep(LOOK_SECONDS / 10)
    os._exit(FAILED)
