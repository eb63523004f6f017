"""Ends this process at once, from any thread, without unwinding.

For when the main thread cannot be waited for: it hangs, or another run owns the workdir. The other
processes of the run are notified first (see `distributed.fail_fast`). Imports no jax, which may be
what hangs.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

NOTIFY_SECONDS = 15.0  # for notifying the other processes, which may hang too

_notify: Callable[[int, str], None] | None = None


@contextlib.contextmanager
def notifying(notify: Callable[[int, str], None]) -> Iterator[None]:
    """Makes `abort` call a function first, with the same arguments."""
    global _notify
    _notify = notify
    try:
        yield
    finally:
        _notify = None


def abort(status: int, reason: str) -> NoReturn:
    """Ends this process.

    Args:
      status: exit status of this process and of the others.
      reason: one line for the others.
    """
    if _notify:
        thread = threading.Thread(target=_notify, args=(status, reason), daemon=True)
        thread.start()
        thread.join(NOTIFY_SECONDS)
    os._exit(status)
