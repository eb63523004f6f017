"""Batches that continue after an error, so that several processes can stop together.

In the middle of a step or an evaluation the other processes wait for the rows of this one. If it
cannot read them, it supplies empty batches until all have agreed to stop. A training step changes
nothing if it gets an empty batch; the results of such an evaluation are dropped.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mae_jax.data.transforms.base import Field, blank_rows


class FallibleBatches(Protocol):
    """Iterator over batches that may raise.

    Attributes:
      bad_count: distinct examples that could not be read so far.
      length: total number of batches; None if endless.
    """

    bad_count: int
    length: int | None

    def __next__(self) -> dict[str, Any]: ...

    def empty(self) -> dict[str, np.ndarray]:
        """A batch without examples."""
        ...

    def close(self) -> None: ...


class TolerantBatches(Iterator[dict[str, Any]]):
    """The same batches; after an error, empty ones for the rest.

    Attributes:
      error: the error; None if there was none.
    """

    def __init__(self, batches: FallibleBatches):
        self.error: Exception | None = None
        self._batches, self._left = batches, batches.length

    @property
    def bad_count(self) -> int:
        """`bad_count` of the batches."""
        return self._batches.bad_count

    def close(self) -> None:
        """Closes the batches."""
        self._batches.close()

    def empty(self) -> dict[str, np.ndarray]:
        """A batch without examples."""
        return self._batches.empty()

    def __next__(self) -> dict[str, Any]:
        if self._left == 0:
            raise StopIteration
        batch = self._read() if self.error is None else None
        if self._left is not None:
            self._left -= 1
        return self.empty() if batch is None else batch

    def _read(self) -> dict[str, Any] | None:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except Exception as error:  # raised again by the owner of the run, once it has stopped
            self.error = error
            return None


def empty_batch(rows: int, fields: Mapping[str, Field], *, train: bool) -> dict[str, np.ndarray]:
    """A batch without examples: fill values, every `index` is -1, no row is `valid`.

    Args:
      rows: of this process.
      fields: of the transform.
      train: False adds `valid`.
    """
    batch = blank_rows(fields, rows) | {"index": np.full(rows, -1, np.int64)}
    return batch if train else batch | {"valid": np.zeros(rows, bool)}
