"""Reports the stack of every thread when a run hangs, and can end the process.

A Python thread checks every few seconds and writes the report. If that thread cannot run (compiled
code that holds the GIL, a workdir that hangs), `watchdog_timer`, which needs neither, prints the
stacks to stderr a little later. Time during which the process was suspended does not count. jax is
not imported here, since it may be what hangs.
"""

import contextlib
import errno
import itertools
import logging
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

from mae_jax.runtime import abort, filesystem
from mae_jax.runtime.errors import HUNG
from mae_jax.runtime.watchdog_timer import Timer

log = logging.getLogger(__name__)

LONGEST_PERIOD = 10.0  # seconds between checks
LATE = 5  # a check delayed by this many periods means that the process was suspended
SLACK = 6  # periods that the timer waits for the thread to report first


class _Mark(NamedTuple):
    """The latest heartbeat; immutable, so that other threads see a consistent one."""

    at: float
    phase: str
    starting: bool
    step: int | None


class Watchdog:
    """Watches the process from construction, in phase "start", until `close`.

    Args:
      seconds: time without a heartbeat after which the process counts as stuck; 0 for never.
      start_seconds: the same for phases that are `starting`.
      abort: end a stuck process, with status `HUNG` (with SIGUSR2 if only the timer could act).
      workdir: folder for the reports `stuck-<process>-<number>.txt`.
      process: index of this process in the run.
    """

    def __init__(
        self,
        *,
        seconds: float,
        start_seconds: float,
        abort: bool = False,
        workdir: str,
        process: int = 0,
    ):
        global _running
        self._limits = {False: seconds, True: start_seconds}
        self._abort, self._workdir, self._process = abort, workdir, process
        self._name = f"process {process} ({socket.gethostname()})"
        self._mark = _Mark(time.monotonic(), "start", True, None)
        self._stuck: _Mark | None = None  # the mark that was reported
        self._due = 0.0  # when to report it again
        self._resumed = -math.inf  # when the process last resumed after a pause
        self._closed = threading.Event()
        wanted = [limit for limit in (seconds, start_seconds) if limit > 0]
        self._period = min([LONGEST_PERIOD, *(limit / 10 for limit in wanted)])
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if wanted:
            self._timer = Timer(self._period, end=abort)
            self._thread.start()
        _running = self

    @contextlib.contextmanager
    def phase(self, name: str, *, starting: bool = False) -> Iterator[None]:
        """Names the current phase; entering and leaving it are heartbeats."""
        before = self._mark
        self._mark = _Mark(time.monotonic(), name, starting, before.step)
        try:
            yield
        finally:
            self._mark = before._replace(at=time.monotonic(), step=self._mark.step)

    def heartbeat(self, step: int | None = None) -> None:
        """Signals progress; call it from the thread that goes through the phases.

        Args:
          step: the last finished step, for the report.
        """
        at, phase, starting, before = self._mark
        self._mark = _Mark(time.monotonic(), phase, starting, before if step is None else step)

    def close(self) -> None:
        """Stops watching."""
        global _running
        _running = None
        self._closed.set()
        if self._thread.ident:
            self._thread.join()
            self._timer.close()

    def _watch(self) -> None:
        while True:
            self._timer.set(self._timer_seconds())
            began = time.monotonic()
            if self._closed.wait(self._period):
                return
            self._detect_pause(time.monotonic() - began)
            self._check()

    def _detect_pause(self, slept: float) -> None:
        """Restarts the clock if this thread slept for much longer than intended."""
        if slept > LATE * self._period:
            self._resumed = time.monotonic()
            log.warning("%s was paused for %.0f s; the watchdog starts over", self._name, slept)

    def _deadline(self, mark: _Mark) -> float:
        """When the process is reported unless there is a heartbeat; infinity for never."""
        limit = self._limits[mark.starting]
        if limit <= 0:
            return math.inf
        return max(self._due if self._stuck else 0.0, self._silent_since(mark) + limit)

    def _silent_since(self, mark: _Mark) -> float:
        return max(mark.at, self._resumed)

    def _check(self) -> None:
        """Reports a process that is stuck, at doubling intervals, or that moves again."""
        mark, now = self._mark, time.monotonic()
        if self._stuck and mark is not self._stuck:
            silent = mark.at - self._stuck.at
            log.warning("%s moves again after %.0f s", self._name, silent)
            self._stuck = None
        if now < self._deadline(mark):
            return
        silent = now - self._silent_since(mark)
        self._stuck, self._due = mark, now + silent
        self._report(mark, silent)

    def _timer_seconds(self) -> float:
        """Seconds until the timer acts if `_check` has not."""
        return max(self._deadline(self._mark) - time.monotonic(), 0) + SLACK * self._period

    def _report(self, mark: _Mark, silent: float) -> None:
        step = "" if mark.step is None else f" after step {mark.step}"
        what = f"{self._name} has not moved for {silent:.0f} s in phase {mark.phase}{step}"
        # Written before it is logged: the stuck thread may hold the logging lock.
        path = self._write(f"{what}\n\n{_stacks()}")
        log.warning("%s; stacks of its threads: %s", what, path)
        if self._abort:
            log.warning("%s exits with status %d (watchdog.abort)", self._name, HUNG)
            abort.abort(HUNG, what)

    def _write(self, text: str) -> str:
        """Writes the report to the next free file, or else to stderr; returns where it is."""
        names = (f"stuck-{self._process}-{number}.txt" for number in itertools.count(1))
        paths = (os.path.join(self._workdir, name) for name in names)
        path = self._workdir
        try:
            if not filesystem.exists(path):  # renamed or deleted: do not create it again
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            path = next(path for path in paths if not filesystem.exists(path))
            filesystem.write(path, text.encode(errors="backslashreplace"))
        except OSError as error:
            print(text, file=sys.stderr, flush=True)
            return f"above, since {path} cannot be written ({error.strerror})"
        return path


_running: Watchdog | None = None


def heartbeat(step: int | None = None) -> None:
    """`Watchdog.heartbeat` of this process's watchdog, if any."""
    if _running:
        _running.heartbeat(step)


def phase(name: str, *, starting: bool = False) -> contextlib.AbstractContextManager[None]:
    """`Watchdog.phase` of this process's watchdog, if any."""
    return _running.phase(name, starting=starting) if _running else contextlib.nullcontext()


def _stacks() -> str:
    """The Python stack of every thread, the main thread's first, innermost call first.

    Like `faulthandler`, but with the names of threads and without its limit of 100 threads, which
    could hide the main thread on a large host. Source lines are not read: the code may be on the
    disk that hangs.
    """
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    parts = []
    for ident in sorted(frames, key=lambda ident: ident != main):
        lines = [
            f'  File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_qualname}'
            for frame, line in traceback.walk_stack(frames[ident])
        ]
        parts.append("\n".join([f"Thread {names.get(ident, ident)}:", *lines]))
    return "\n\n".join(parts) + "\n"
