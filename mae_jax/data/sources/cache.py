"""Keeps the records of a source in memory once they have been read."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mae_jax.data.sources.base import Record, Source

log = logging.getLogger(__name__)

# Bytes of the Python objects of a record, without its data and arrays; measured with sys.getsizeof.
OVERHEAD = 400


class Budget:
    """Total bytes that the caches of a process may use. Safe to use from any thread."""

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Takes `size` bytes; False, and nothing is taken, if they are not left."""
        with self._lock:
            if self.used + size > self.limit:
                return False
            self.used += size
            return True


class Cached:
    """A source whose records stay in memory, as far as the budget allows.

    Records that do not fit are read again each time. Nothing is evicted, because in a shuffled
    epoch every record is equally far from its next use.

    Args:
      source: where records come from.
      budget: shared by all caches of the process.
      change: applied to a record before it is kept, such as decoding; may raise like `read`.

    Attributes:
      stored: the wrapped source, which reads the storage every time.
    """

    def __init__(self, source: Source, budget: Budget, *, change: Callable[[Record], Record]):
        self.name = source.name
        self.classes = source.classes
        self.stored = self._source = source
        self._budget = budget
        self._change = change
        self._kept: dict[int, Record] = {}
        self._lock = threading.Lock()
        self._full = False

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        return [self._one(int(index)) for index in indices]

    def unwrap(self, indices: np.ndarray) -> tuple[Source, np.ndarray]:
        """See `base.unwrapped`."""
        return self._source, indices

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def fingerprint(self) -> dict[str, Any]:
        return self._source.fingerprint()

    def _one(self, index: int) -> Record:
        if (kept := self._kept.get(index)) is not None:
            return kept
        (record,) = self._source.read([index])
        record = self._change(record)
        if not self._full:
            self._keep(index, record)
        return record

    def _keep(self, index: int, record: Record) -> None:
        size = sum(map(_num_bytes, (record.data, *record.annotation.values())))
        with self._lock:  # two threads may have read the same record
            if self._full or index in self._kept:
                return
            if self._budget.take(size + OVERHEAD):
                self._kept[index] = record
                return
            self._full = True
        log.info(
            "the cache is full: %s of %s images of %s are kept, the rest is read each time "
            "(--config.data.cache_gb)",
            *(f"{len(self._kept):,}", f"{len(self):,}", self.name),
        )


def _num_bytes(value: Any) -> int:
    """Bytes of a part of a record; numbers are part of `OVERHEAD`."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):  # outlines of objects
        return sum(map(_num_bytes, value))
    return value.nbytes if isinstance(value, np.ndarray) else 0
