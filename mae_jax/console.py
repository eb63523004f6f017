"""What our commands print: our own messages, and only the warnings of libraries."""

import logging
import sys
from collections.abc import Callable

import absl.logging

from mae_jax.errors import RunError, StorageUnavailable, UsageError
from mae_jax.stopping import STOPPED


def setup_logging() -> None:
    """Plain timed lines on stderr; libraries (Orbax logs every file it touches) only warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mae_jax").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.WARNING)


def run_command(command: Callable[[], int]) -> int:
    """Exit status of `command`, with one line on what ended it.

    2 for bad input, 1 for a run that cannot continue, 75 for storage that may come back.
    """
    try:
        return command()
    except (UsageError, RunError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, StorageUnavailable):
            return STOPPED
        return 2 if isinstance(error, UsageError) else 1
