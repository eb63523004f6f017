"""What several processes agree on about a checkpoint: what there is, and whether it is sound."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.errors import StorageUnavailable, UsageError
from mae_jax.step_folders import Found, NoSuchStep, find, folder_of
from mae_jax.stored import DamagedCheckpoint

_T = TypeVar("_T")


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


def find_one(path: str) -> Found:
    """The checkpoint that process 0 finds at `path`, on every process.

    Others may already see a newer step of a run that is still training.

    Raises:
      UsageError: on every process if on one.
    """
    found = read(path, lambda: find(path))
    step = of_first(lambda: [find(path).step])[0]
    folder = str(folder_of(found.run, step)) if found.run else found.folder
    return found._replace(folder=folder, step=step)


def read(where: str, work: Callable[[], _T]) -> _T:
    """Result of `work`, which reads what is at `where`, if it succeeds on every process.

    Raises:
      DamagedCheckpoint: on all of them if on one.
      NoSuchStep: the same.
      UsageError: on all of them for any other error; the process that met it raises it unchanged.
    """
    result: Any = None
    error = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    worst = max(everywhere(_rank(error)))
    if error and _rank(error) == worst:
        raise error
    if worst:
        raise _of_another(where)[worst]
    return result


def _rank(error: Exception | None) -> int:
    """How serious: an older step replaces a damaged one, a newer one a deleted one; others end."""
    if error is None:
        return 0
    return {DamagedCheckpoint: 1, NoSuchStep: 2}.get(type(error), 3)


def _of_another(where: str) -> dict[int, UsageError]:
    """What a process raises for another one, by `_rank`."""
    said = "another process could not read it: see what it printed last"
    return {
        1: DamagedCheckpoint(where, said),
        2: NoSuchStep(f"{where} is not there any more: {said}"),
        3: UsageError(f"{where}: {said}"),
    }
