"""Moves batches to the devices ahead of the step that needs them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.data import storage
from mae_jax.data.tolerant import FallibleBatches, TolerantBatches
from mae_jax.distributed.sharding import to_device
from mae_jax.runtime import watchdog

POLL_SECONDS = 0.001
WAIT_SECONDS = 1.0  # between two checks while there is no batch
CLOSE_TRIES = 200  # of 0.05 s; a read that hangs may outlast them


class Prefetch(Iterator[dict[str, jax.Array]]):
    """Iterator of batches on the devices; a thread makes `depth` of them in advance.

    After a read error, and after a stop request while there is no batch, the batches are empty: see
    `TolerantBatches`. Call `close` to end the thread.

    Args:
      batches: this process's rows.
      mesh: the devices.
      depth: number of batches made in advance.
    """

    def __init__(self, batches: FallibleBatches, mesh: Mesh, depth: int = 2):
        self._batches, self._mesh = TolerantBatches(batches), mesh
        self._ended = False
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        while not self._ended:
            try:
                item = self._queue.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                self._check_for_stop()
                continue
            if isinstance(item, Exception):
                raise item
            return item
        return to_device(self._mesh, self._batches.empty())

    def _check_for_stop(self) -> None:
        """Called repeatedly while there is no batch."""
        if storage.is_waited_for():
            watchdog.heartbeat()
        # From then on all batches are empty: a late one would be mistaken for a later step's.
        self._ended = storage.stop_requested()

    @property
    def error(self) -> Exception | None:
        """Why the batches are empty; None while they are not, or after a stop request."""
        return self._batches.error

    def take(self, busy: Callable[[], bool]) -> tuple[dict[str, jax.Array], float]:
        """The next batch, and the seconds that the devices were idle waiting for it.

        Args:
          busy: whether the devices still have work; waiting time counts only when they do not.
        """
        while self._queue.empty() and busy():
            time.sleep(POLL_SECONDS)
        began = time.perf_counter()
        batch = next(self)
        return batch, time.perf_counter() - began

    def close(self) -> None:
        """Ends the thread and drops the batches it made."""
        self._closed.set()
        for _ in range(CLOSE_TRIES):
            if not self._thread.is_alive():
                return
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                self._queue.put(to_device(self._mesh, batch))
                if self._closed.is_set():
                    return
            self._queue.put(StopIteration())
        except Exception as error:  # from a device; raised in the thread that waits for the batch
            self._queue.put(error)
