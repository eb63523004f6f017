"""Collective operations on values of the host: gather, broadcast, and work on process 0."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.runtime.errors import StorageUnavailable, UsageError


def all_gather(value: int) -> list[int]:
    """The values of all processes, in order."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def all_gather_bytes(value: bytes) -> list[bytes]:
    """The bytes of all processes, in order; they may differ in length."""
    if jax.process_count() == 1:
        return [value]
    sizes = all_gather(len(value))
    padded = np.frombuffer(value.ljust(max(sizes), b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def run_on_primary(work: Callable[[], Any]) -> None:
    """Calls `work` on process 0 only; an error there is raised on all processes.

    Raises:
      OSError: raised by `work`.
      UsageError: raised by `work`.
    """
    error: OSError | UsageError | None = None
    if jax.process_index() == 0:
        try:
            work()
        except (OSError, UsageError) as caught:
            error = caught
    if any(all_gather(error is not None)):
        raise error or OSError("process 0 failed; see its log above")


def broadcast_ints(work: Callable[[], list[int]]) -> list[int]:
    """The result of `work` on process 0, on every process.

    Raises:
      OSError: raised by `work`; on every process.
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
    """Arrays computed by process 0, on every process.

    Args:
      work: computes the arrays; called only on process 0.
      like: arrays with the same names, shapes, and dtypes.

    Raises:
      UsageError: raised by `work`; on every process.
      StorageUnavailable: raised by `work`; on process 0, and UsageError on the others.
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
        raise error or UsageError("process 0 failed; see its log above")
    return multihost_utils.broadcast_one_to_all(like)
