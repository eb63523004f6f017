"""Being asked to stop: SIGTERM (schedulers), SIGUSR1 (Slurm's --signal) and SIGINT (Ctrl-C)."""

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
START_GRACE = 5.0  # seconds to leave in good order when there is nothing to save
LAST_WORDS = 2.0  # seconds for what is called before leaving at once
SLICE = 1.0  # seconds of a pause between two looks for a request
REPEAT = 1.0  # schedulers send a signal to a process and to its group: within this it is one


class Interrupted(BaseException):
    """Asked to stop where nothing is to be saved; like KeyboardInterrupt, no library catches it."""


class StopRequest:
    """Whether somebody asked the run to stop.

    Until `mark_savable` is called there is nothing to save and a signal ends the program: by
    `Interrupted`, or after a few seconds, when the main thread is busy compiling, without it. From
    then on a signal is answered at once and remembered, and `poll` says so. A second signal leaves
    at once, wherever the main thread may hang. With several processes jax's own SIGTERM handler
    makes all of them agree, wherever the signal arrived; the other signals are passed on to it.

    Attributes:
      multiprocess: whether the run has several processes; set it when that is known.
      before_leaving: called before the program is ended without the main thread.
      answer: printed when the first signal comes after `mark_savable`.
    """

    def __init__(self) -> None:
        self.multiprocess = False
        self.answer = "finishing this step, then saving; press again to leave without saving"
        self.before_leaving: list[Callable[[], None]] = []
        self._asked = self._heard = False
        self._next_question = 0.0
        self._savable = self._answered = False
        self._polls = 0

    def mark_savable(self) -> None:
        """From now on there is something to save."""
        self._savable = True

    def reinstall(self) -> None:
        """After `jax.distributed` took SIGTERM: with one process nobody would ask it."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def poll(self) -> bool:
        """True when the run should stop here, and ever after.

        Every process of a run must call this equally often: they agree on the call, not the time.
        """
        if self.multiprocess and not self._asked:
            from jax.experimental import multihost_utils  # takes a second to import

            self._polls += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._polls)
            if self._asked:  # perhaps by a signal that only jax heard, or that another process got
                self._answer()
        return self._asked

    @property
    def asked(self) -> bool:
        """Whether the last `poll` was told to stop; a signal since may not count yet."""
        return self._asked

    def pause(self, seconds: float) -> None:
        """Waits; a first request to stop ends the pause, so that what follows is done at once.

        As with `poll`, every process must call this equally often.
        """
        before = self._asked
        for _ in range(math.ceil(seconds / SLICE)):
            time.sleep(min(seconds, SLICE))
            watchdog.heartbeat()
            if self.poll() and not before:
                return

    def noticed(self) -> bool:
        """Whether a stop was requested, perhaps in another process, at the latest a second ago.

        For threads that wait, while the main thread may wait for them: unlike `poll` this makes no
        process agree to anything.
        """
        now = time.monotonic()
        if self.multiprocess and not self._heard and now >= self._next_question:
            self._next_question = now + 1.0
            self._heard = _preemption_noticed()
        return self._asked or self._heard

    def _on_signal(self, number: int, frame: object) -> None:
        if self.multiprocess and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        first, self._asked = not self._asked, True
        if first and not self._savable:
            raise Interrupted

    def _watch(self, pipe: int) -> None:
        """Hears signals even while the main thread is inside a library; 0 ends the thread."""
        first = deadline = None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([pipe], [], [], left)[0]:
                self._leave(STOPPED, "stopped before the first step: nothing to save")
            number = os.read(pipe, 1)[0]
            if number == 0:
                return
            now = time.monotonic()
            if number not in SIGNALS:
                continue
            self._heard = True
            if first is None:
                first = now
                if self._savable:
                    self._answer()
                elif not self.multiprocess:
                    deadline = now + START_GRACE
            elif now - first >= REPEAT:
                self._leave(128 + number, "second signal: leaving at once, without saving")

    def _answer(self) -> None:
        """Says once that the request is heard."""
        answered, self._answered = self._answered, True
        if not answered:
            self._say(self.answer)

    def _say(self, message: str, *then: Callable[[], None]) -> None:
        """Prints and then calls, but waits for neither long: a disk or a terminal may hang."""

        def work() -> None:
            print(message, file=sys.stderr, flush=True)
            for call in then:
                call()

        thread = threading.Thread(target=work, name="signals: says", daemon=True)
        thread.start()
        thread.join(LAST_WORDS)

    def _leave(self, status: int, message: str) -> None:
        self._say(message, *self.before_leaving)
        os._exit(status)


def _preemption_noticed() -> bool:
    """Whether jax's handler of SIGTERM was called in any process."""
    import jax  # takes seconds
    from jax._src import distributed  # has no public name; see `store`

    client: Any = distributed.global_state.client
    try:
        client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
    except jax.errors.JaxRuntimeError:  # there is none
        return False
    return True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns signals into a request to stop; the main thread must call this."""
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
