"""What our commands print: our own messages, and only the warnings of libraries.

Names of files and arrays come from outside and may hold newlines and escape sequences. What is
printed here shows these as text, so that they neither forge lines nor steer a terminal.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import absl.logging

from mae_jax.errors import RunError, UsageError
from mae_jax.text import printable


class _OneLine(logging.Formatter):
    """Keeps every record on a line of its own, but for a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def setup_logging() -> None:
    """Plain timed lines on stderr; libraries (Orbax logs every file it touches) only warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mae_jax").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.WARNING)


def say(*lines: str, error: bool = False) -> None:
    """Prints lines on stdout, or on stderr as an `error`."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


def run_command(command: Callable[[], int]) -> int:
    """Exit status of `command`: 2 for bad input, 1 for a run that cannot go on; one line each."""
    try:
        return command()
    except (UsageError, RunError, FloatingPointError) as error:
        say(f"error: {error}", error=True)
        return 2 if isinstance(error, UsageError) else 1
