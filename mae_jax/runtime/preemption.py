"""Requests to stop: SIGTERM (schedulers), SIGUSR1 (Slurm's --signal), and SIGINT (Ctrl-C)."""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mae_jax.runtime import watchdog
from mae_jax.runtime.errors import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
START_GRACE = 5.0  # seconds for a clean exit while there is nothing to save
CLEANUP_SECONDS = 2.0  # for the message and `before_leaving`
SLICE = 1.0  # seconds between polls during a pause
REPEAT = 1.0  # seconds; schedulers signal both a process and its group: sooner is a duplicate


class Interrupted(BaseException):
    """A request to stop with nothing to save. As with KeyboardInterrupt, no library catches it."""


class StopRequest:
    """Whether the run has been asked to stop.

    Before `mark_savable` is called there is nothing to save, and a signal ends the program: it
    raises `Interrupted`, and if the main thread is busy (compiling, for example), the process exits
    after a few seconds. After that, a signal is acknowledged at once and `poll` returns True. A
    second signal exits immediately, even if the main thread hangs. With several processes, jax's
    SIGTERM handler makes all of them agree; the other signals are forwarded to it.

    Attributes:
      multiprocess: whether the run has several processes; set it once known.
      before_leaving: called before the process exits without unwinding.
      answer: printed at the first signal after `mark_savable`.
    """

    def __init__(self) -> None:
        self.multiprocess = False
        self.answer = "finishing this step, then saving; press again to leave without saving"
        self.before_leaving: list[Callable[[], None]] = []
        self._requested = self._noticed = False
        self._next_query = 0.0
        self._savable = self._acknowledged = False
        self._polls = 0

    def mark_savable(self) -> None:
        """Call when there is something to save."""
        self._savable = True

    def reinstall(self) -> None:
        """Takes SIGTERM back from `jax.distributed`, whose handler needs several processes."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def poll(self) -> bool:
        """True once the run should stop.

        Every process of a run must call this equally often: they agree on the number of the call.
        """
        if self.multiprocess and not self._requested:
            from jax.experimental import multihost_utils  # takes a second to import

            self._polls += 1
            self._requested = multihost_utils.reached_preemption_sync_point(self._polls)
            if self._requested:  # perhaps a signal that only jax or another process received
                self._acknowledge()
        return self._requested

    @property
    def requested(self) -> bool:
        """The result of the last `poll`, or a signal in this process."""
        return self._requested

    def pause(self, seconds: float) -> None:
        """Sleeps, and returns early at the first request to stop.

        As with `poll`, every process must call this equally often.
        """
        before = self._requested
        for _ in range(math.ceil(seconds / SLICE)):
            time.sleep(min(seconds, SLICE))
            watchdog.heartbeat()
            if self.poll() and not before:
                return

    def noticed(self) -> bool:
        """Whether a stop was requested in any process, with a delay of up to a second.

        For background threads: unlike `poll`, this is not a collective decision.
        """
        now = time.monotonic()
        if self.multiprocess and not self._noticed and now >= self._next_query:
            self._next_query = now + 1.0
            self._noticed = _preemption_noticed()
        return self._requested or self._noticed

    def _on_signal(self, number: int, frame: object) -> None:
        if self.multiprocess and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        first, self._requested = not self._requested, True
        if first and not self._savable:
            raise Interrupted

    def _watch(self, pipe: int) -> None:
        """Receives signals even while the main thread is inside a library; 0 ends the thread."""
        first = deadline = None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([pipe], [], [], left)[0]:
                self._exit(STOPPED, "stopped before the first step: nothing to save")
            number = os.read(pipe, 1)[0]
            if number == 0:
                return
            now = time.monotonic()
            if number not in SIGNALS:
                continue
            self._noticed = True
            if first is None:
                first = now
                if self._savable:
                    self._acknowledge()
                elif not self.multiprocess:
                    deadline = now + START_GRACE
            elif now - first >= REPEAT:
                self._exit(128 + number, "second signal: leaving at once, without saving")

    def _acknowledge(self) -> None:
        """Prints `answer` once."""
        acknowledged, self._acknowledged = self._acknowledged, True
        if not acknowledged:
            self._print(self.answer)

    def _print(self, message: str, *then: Callable[[], None]) -> None:
        """Prints, then makes the calls, with a time limit: a disk or a terminal may hang."""

        def work() -> None:
            print(message, file=sys.stderr, flush=True)
            for call in then:
                call()

        thread = threading.Thread(target=work, name="signals: print", daemon=True)
        thread.start()
        thread.join(CLEANUP_SECONDS)

    def _exit(self, status: int, message: str) -> None:
        self._print(message, *self.before_leaving)
        os._exit(status)


def _preemption_noticed() -> bool:
    """Whether jax's SIGTERM handler was called in any process."""
    import jax  # takes seconds
    from jax._src import distributed  # no public API; see `distributed.kv_store`

    client: Any = distributed.global_state.client
    try:
        client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
    except jax.errors.JaxRuntimeError:  # there is none
        return False
    return True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns signals into a `StopRequest`; call it in the main thread."""
    request = StopRequest()
    read, write = os.pipe()
    os.set_blocking(write, False)
    thread = threading.Thread(target=request._watch, args=(read,), name="signals", daemon=True)
    thread.start()
    handlers = {number: signal.signal(number, request._on_signal) for number in SIGNALS}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield request
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)
