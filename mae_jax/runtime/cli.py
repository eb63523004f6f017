"""Console output of the commands: our own messages, and warnings from libraries.

File and array names are untrusted and may contain newlines and escape sequences. These are printed
escaped, so that they can neither fake log lines nor control the terminal.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import absl.logging

from mae_jax.runtime import backend, disk
from mae_jax.runtime.errors import INTERRUPTED, RunError, UsageError, exit_status
from mae_jax.runtime.text import printable


class _OneLine(logging.Formatter):
    """Formats every record as a single line, apart from tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def setup_logging() -> None:
    """Logs plain lines with the time to stderr; libraries only warn (Orbax logs every file)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: not _raised_too(record))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mae_jax").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.WARNING)
    sys.unraisablehook = _unraisable


def _raised_too(record: logging.LogRecord) -> bool:
    """Whether Orbax logs an error that it also raises, which we report ourselves."""
    orbax = record.name == "asyncio" or f"{os.sep}orbax{os.sep}" in record.pathname
    return orbax and record.levelno >= logging.ERROR


def _unraisable(unraisable: Any) -> None:
    """Suppresses what tensorstore prints for every array after a failed save."""
    trace = unraisable.exc_traceback
    if trace is None or trace.tb_frame.f_code.co_name != "call_soon_threadsafe":
        sys.__unraisablehook__(unraisable)


def make_parser(command: str, doc: str | None, **options: Any) -> argparse.ArgumentParser:
    """Parser of `python -m mae_jax.COMMAND`, whose --help starts with the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m mae_jax.{command}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def say(*lines: str, error: bool = False) -> None:
    """Prints lines on stdout, or on stderr as an `error`."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


def run_command(command: Callable[[], int]) -> int:
    """Runs `command` and returns its exit status: 2 for bad input, 1 for a failure.

    Either is reported in one line on stderr. A full disk and other operating system errors count as
    failures. The status does not depend on whether stderr can be written.
    """
    _repair_streams()
    try:
        status = command()
        sys.stdout.flush()  # output that cannot be written is an error of the command
    except Exception as caught:
        error = backend.unavailable(caught) or caught
        if not isinstance(error, (UsageError, RunError, FloatingPointError, OSError)):
            raise
        say(*_lines(error), error=True)
        status = exit_status(error)
    except KeyboardInterrupt:
        say("interrupted", error=True)
        status = INTERRUPTED
    _discard_stdout()
    return status


def _lines(error: Exception) -> list[str]:
    if isinstance(error, UsageError) and len(error.args) > 1:
        return [f"error: {len(error.args)} problems", *(f"  - {text}" for text in error.args)]
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return [f"error: {error.filename}: {disk.error_line(error, error.filename)}"]
    return [f"error: {error}"]


class _Lossy(io.FileIO):
    """A file that ignores write errors, such as a full disk or a closed pipe."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _repair_streams() -> None:
    """Makes printing work where a stream is closed, fails, or does not support Unicode."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would become the stream
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is sys.__stderr__:  # has not been replaced, for example by pytest
        raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(
            raw, sys.stdout.encoding, "backslashreplace", line_buffering=True
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Drops unwritable output: Python would try again at exit, and change the status."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
