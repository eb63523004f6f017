"""Prints the stacks of a process in which Python code no longer runs, and can end it.

Compiled code that holds the GIL stops every Python thread, and a timer inside the process would
fire right after a long suspension (SIGSTOP, a frozen container). So a second interpreter counts the
seconds in which both processes could run. This file is its program; it exits together with the
process that it watches. It uses only the standard library.
"""

import faulthandler
import math
import os
import select
import signal
import subprocess
import sys
import time

SIGNAL = signal.SIGUSR2  # sent to a process that does not set its timer again
HICCUP = 1.0  # seconds by which a busy machine may wake us late
IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGHUP,
)  # sent to the group too


class Timer:
    """A timer of this process, to be set repeatedly until `close`.

    Args:
      tick: its resolution in seconds; it should be set about as often.
      end: end the process with `SIGNAL` after its stacks are printed.
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
        """Makes it fire after a number of seconds; math.inf for never."""
        try:
            os.write(self._pipe, f"{seconds}\n".encode())
        except (BlockingIOError, BrokenPipeError):  # the other interpreter was stopped or killed
            return

    def close(self) -> None:
        """Stops the timer."""
        self._process.communicate()
        faulthandler.unregister(SIGNAL)


def _count(pid: int, tick: float) -> None:
    """Sends `SIGNAL` to a process once the seconds that it wrote to stdin have passed."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    left = math.inf
    while True:
        began = time.monotonic()
        if select.select([0], [], [], tick)[0]:
            message = os.read(0, 2**16)
            if not message:  # the process has ended
                return
            left = float(message.split()[-1])
        # During a tick that took much longer, everything was suspended.
        elif time.monotonic() - began < 2 * tick + HICCUP and not _is_stopped(pid):
            left -= tick
            if left <= 0:
                os.kill(pid, SIGNAL)
                left = math.inf


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger; only known on Linux."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    _count(int(sys.argv[1]), float(sys.argv[2]))
