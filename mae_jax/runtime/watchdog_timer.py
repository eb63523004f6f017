"""Prints the stacks of a process in which no Python runs any more, and may end it.

Compiled code that keeps the interpreter's lock stops every Python thread, and a timer inside the
process would go off right after a pause (SIGSTOP, a frozen container) that outlasts it. So a second
interpreter counts the seconds in which both processes could run. This file is its program, which
ends with the process that it watches. It needs nothing but the standard library.
"""

import faulthandler
import math
import os
import select
import signal
import subprocess
import sys
import time

SIGNAL = signal.SIGUSR2  # what a process that does not set its timer again gets
HICCUP = 1.0  # seconds by which a busy machine may wake us too late
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # also sent to the group


class Timer:
    """A timer of this process, to be set again and again until `close`.

    Args:
      tick: seconds in which it counts; it should be set about as often.
      end: end the process, by `SIGNAL`, after its stacks were printed.
    """

    def __init__(self, tick: float, *, end: bool):
        faulthandler.register(SIGNAL, file=sys.__stderr__ or 2, all_threads=True, chain=end)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(tick)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def set(self, seconds: float) -> None:
        """Has it go off after so many seconds; math.inf: never."""
        try:
            os.write(self._pipe, f"{seconds}\n".encode())
        except (BlockingIOError, BrokenPipeError):  # the other interpreter was stopped or killed
            return

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()
        faulthandler.unregister(SIGNAL)


def _count(pid: int, tick: float) -> None:
    """Sends `SIGNAL` to a process when the seconds that it writes into the pipe are over."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    left = math.inf
    while True:
        began = time.monotonic()
        if select.select([0], [], [], tick)[0]:
            said = os.read(0, 2**16)
            if not said:  # it has ended
                return
            left = float(said.split()[-1])
        # A tick that took much longer is one in which everything was paused.
        elif time.monotonic() - began < 2 * tick + HICCUP and not _is_stopped(pid):
            left -= tick
            if left <= 0:
                os.kill(pid, SIGNAL)
                left = math.inf


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger; only Linux says so."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    _count(int(sys.argv[1]), float(sys.argv[2]))
