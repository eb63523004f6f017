"""What our commands print: our own messages, and only the warnings of libraries."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import absl.logging

from mae_jax.errors import RunError, UsageError


def setup_logging() -> None:
    """Plain timed lines on stderr; libraries (Orbax logs every file it touches) only warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: not _raised_too(record))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mae_jax").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.WARNING)
    sys.unraisablehook = _unraisable


def _raised_too(record: logging.LogRecord) -> bool:
    """Whether Orbax logs an error, with its traceback: it also raises it, and we say it once."""
    orbax = record.name == "asyncio" or f"{os.sep}orbax{os.sep}" in record.pathname
    return orbax and record.levelno >= logging.ERROR


def _unraisable(unraisable: Any) -> None:
    """Leaves out what tensorstore prints, array by array, after a save that has failed."""
    trace = unraisable.exc_traceback
    if trace is None or trace.tb_frame.f_code.co_name != "call_soon_threadsafe":
        sys.__unraisablehook__(unraisable)


def run_command(command: Callable[[], int]) -> int:
    """Exit status of `command`: 2 for bad input, 1 for a run that cannot go on; one line each."""
    try:
        return command()
    except (UsageError, RunError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
