"""What several processes agree on about a checkpoint: what there is, and whether it is sound."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.errors import StorageUnavailable, UsageError
from mae_jax.stored import DamagedCheckpoint, damage

_T = TypeVar("_T")
_DAMAGED = 1


def everywhere(value: int) -> list[int]:
    """The value on every process, in their order."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def on_first(work: Callable[[], Any]) -> None:
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
    if any(everywhere(error is not None)):
        raise error or OSError("process 0 could not do it: see what it printed last")


def of_first(work: Callable[[], list[int]]) -> list[int]:
    """Process 0's list, on every process: a shared disk may show each another one.

    Raises:
      OSError: of `work`, on all.
    """
    values: list[int] = []
    on_first(lambda: values.extend(work()))
    if jax.process_count() == 1:
        return values
    size = everywhere(len(values))[0]
    return multihost_utils.broadcast_one_to_all(np.resize(values or [0], size)).tolist()


def arrays_of_first(
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
    if any(everywhere(error is not None)):
        raise error or UsageError("process 0 stopped: see what it printed last")
    return multihost_utils.broadcast_one_to_all(like)


def read(folder: str, work: Callable[[], _T]) -> _T:
    """Result of `work`, which reads `folder`, if it succeeds on every process.

    Raises:
      DamagedCheckpoint: on all of them if on one.
      UsageError: the same.
    """
    result: Any = None
    error = None
    try:
        with damage(folder):
            result = work()
    except UsageError as caught:
        error = caught
    worst = max(everywhere(_rank(error)))
    if not worst:
        return result
    if error and _rank(error) == worst:
        raise error
    if worst == _DAMAGED:
        raise DamagedCheckpoint(folder, "another process could not read it")
    raise UsageError(f"{folder} cannot be read by another process")


def _rank(error: UsageError | None) -> int:
    """How bad it is: damage is to be worked round, anything else stops the run."""
    if error is None:
        return 0
    return _DAMAGED if isinstance(error, DamagedCheckpoint) else _DAMAGED + 1
