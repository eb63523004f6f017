"""Finds the largest batch size that fits into memory."""

from collections.abc import Callable
from typing import Any

import jax

from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.host import available_memory
from mae_jax.tasks import TASKS
from mae_jax.tools.bench.compile import compile_step, planned_bytes

USABLE = 0.95  # the rest is for the program itself and for fragmentation
FIRST = 4  # batches of 4 and 8 per device and accumulation step show how memory grows


def find_batch(config: Any) -> int:
    """The largest global batch whose step fits the memory of this machine's devices, within 2 %.

    Raises:
      UsageError: not even the smallest batch fits.
    """
    mesh = sharding.make_mesh(**config.mesh)

    def bytes_at(batch_size: int) -> int:
        resized = config.copy_and_resolve_references()
        resized.batch_size = batch_size
        resized.data.num_train = max(batch_size, resized.data.num_train)  # at least one batch
        return planned_bytes(compile_step(resized, TASKS[config.task](resized, ""), mesh))

    multiple = mesh.size * config.grad_accum
    limit = int(USABLE * memory_limit())
    batch = largest_batch(bytes_at, limit=limit, multiple=multiple)
    if not batch:
        raise UsageError(
            f"--find_batch: not even a batch of {multiple} fits {limit / 2**30:.1f} GB on a device "
            "(raise --config.mesh.fsdp, or take a smaller model)"
        )
    return batch


def largest_batch(bytes_at: Callable[[int], int], *, limit: int, multiple: int) -> int:
    """The largest batch with bytes_at(batch) <= limit, within 2 %, in about five compilations.

    Args:
      bytes_at: memory of the step for a batch size; nearly linear.
      limit: bytes of a device.
      multiple: the batch size must be a multiple of this.

    Returns:
      A batch size that fits, as compiled; 0 if there is none.
    """
    sizes: dict[int, int] = {}

    def size(count: int) -> int:
        if count not in sizes:
            sizes[count] = bytes_at(count * multiple)
        return sizes[count]

    def crossing(a: int, b: int) -> int:
        """Where the line through two counts crosses the limit."""
        slope = max((size(b) - size(a)) / (b - a), 1.0) if a != b else float("inf")
        return max(int(a + (limit - size(a)) / slope), 1)

    guess = crossing(2 * FIRST, crossing(FIRST, 2 * FIRST))  # refined near the limit
    while guess and size(guess) > limit:
        guess -= max(1, guess // 50)
    return guess * multiple


def memory_limit() -> int:
    """Bytes of one device; on CPU its share of the machine's free memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return available_memory() // jax.local_device_count()
