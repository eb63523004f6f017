"""Moves batches to the devices ahead of the step that needs them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.sharding import to_device

POLL_SECONDS = 0.001


class Prefetch(Iterator[dict[str, jax.Array]]):
    """Iterator of device batches, `depth` of them made in advance by a thread.

    An error while reading is raised by `next`. Call `close` to end the thread.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, depth: int = 2):
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, mesh), daemon=True)
        self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def take(self, busy: Callable[[], bool]) -> tuple[dict[str, jax.Array], float]:
        """The next batch, and the seconds that were lost waiting for it.

        Args:
          busy: whether the devices still have something to do; as long as they do, nothing is lost.

        Raises as `next`.
        """
        while self._queue.empty() and busy():
            time.sleep(POLL_SECONDS)
        began = time.perf_counter()
        batch = next(self)
        return batch, time.perf_counter() - began

    def close(self) -> None:
        """Ends the thread and drops what it made."""
        self._closed.set()
        while self._thread.is_alive():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)

    def _fill(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> None:
        try:
            for batch in batches:
                self._queue.put(to_device(mesh, batch))
                if self._closed.is_set():
                    return
            self._queue.put(StopIteration())
        except Exception as error:  # handed to the thread that waits for the batch
            self._queue.put(error)
