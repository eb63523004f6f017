"""Ends this process at once, from any thread, without unwinding.

For what cannot be waited for: a main thread that hangs, a workdir that belongs to another run. The
other processes of the run are told first (see `failing`). No jax here: it may be what hangs.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

LAST_WORDS = 15.0  # seconds to tell the others; what tells them may hang too

_tell: Callable[[int, str], None] | None = None


@contextlib.contextmanager
def telling(tell: Callable[[int, str], None]) -> Iterator[None]:
    """Has `leave` call a function first, with its own arguments."""
    global _tell
    _tell = tell
    try:
        yield
    finally:
        _tell = None


def leave(status: int, why: str) -> NoReturn:
    """Ends this process.

    Args:
      status: its exit status, and that of the others.
      why: one line for the others.
    """
    if _tell:
        thread = threading.Thread(target=_tell, args=(status, why), daemon=True)
        thread.start()
        thread.join(LAST_WORDS)
    os._exit(status)
