"""Ends a run with the same type of error on every process when its data cannot be read."""

from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError, StorageUnavailable


def raise_on_all_hosts(error: Exception | None) -> None:
    """Raises the error of this process, or else one that names the process that failed.

    All processes must call it together.

    Args:
      error: why this process could not read its data; None if it could.

    Raises:
      StorageUnavailable: the only reason, on all processes that failed, is unavailable storage.
      RunError: another process failed for another reason.
    """
    rank = 0 if error is None else 1 if isinstance(error, StorageUnavailable) else 2
    ranks = collectives.all_gather(rank)
    if error:
        raise error
    if worst := max(ranks):
        kind = StorageUnavailable if worst == 1 else RunError
        raise kind(f"process {ranks.index(worst)} could not read its data: see its log above")
