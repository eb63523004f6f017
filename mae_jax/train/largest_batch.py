"""Searches for the largest batch that fits into memory."""

from collections.abc import Callable

import jax

from mae_jax.runtime import host

USABLE = 0.95  # the rest is for the program itself and for fragmentation
FIRST = 4  # batches of 4 and 8 per device and accumulation step show how memory grows


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
    """Bytes of one device; on CPU its share of the host's free memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host.share(host.available_memory()) // jax.local_device_count()
