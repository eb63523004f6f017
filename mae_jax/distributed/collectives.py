"""What several processes agree on about a checkpoint: what there is, and whether it is sound."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.runtime.errors import StorageUnavailable, UsageError


def all_gather(value: int) -> list[int]:
    """The value on every process, in their order."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def run_on_primary(work: Callable[[], Any]) -> None:
    """Does something on process 0 alone; what goes wrong there is raised on all.

    Raises:
      OSError: of `work`.
      UsageError: the same.
    """
    error: OSError | UsageError | None = None
    if jax.process_index() == 0:
        try:
            work()
        except (OSError, UsageError) as caught:
            error = caught
    if any(all_gather(error is not None)):
        raise error or OSError("process 0 could not do it: see what it printed last")


def broadcast_ints(work: Callable[[], list[int]]) -> list[int]:
    """Process 0's list, on every process: a shared disk may show each another one.

    Raises:
      OSError: of `work`, on all.
    """
    values: list[int] = []
    run_on_primary(lambda: values.extend(work()))
    if jax.process_count() == 1:
        return values
    size = all_gather(len(values))[0]
    return multihost_utils.broadcast_one_to_all(np.resize(values or [0], size)).tolist()


def broadcast_arrays(
    work: Callable[[], dict[str, np.ndarray]], like: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays that process 0 makes, on every process.

    Args:
      work: makes them; called by process 0 alone.
      like: arrays of the same names, shapes and dtypes.

    Raises:
      UsageError: on every process if on process 0.
      StorageUnavailable: on process 0; then UsageError on the others.
    """
    if jax.process_count() == 1:
        return work()
    error = None
    if jax.process_index() == 0:
        try:
            like = work()
        except (UsageError, StorageUnavailable) as caught:
            error = caught
    if any(all_gather(error is not None)):
        raise error or UsageError("process 0 stopped: see what it printed last")
    return multihost_utils.broadcast_one_to_all(like)
