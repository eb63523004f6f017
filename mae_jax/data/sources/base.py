"""What every data source offers: random access by index, nothing else."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Record(NamedTuple):
    """One example before decoding: the bytes of an image file or an array [h, w, C], and a label.

    The label is -1 where there is none.
    """

    data: bytes | np.ndarray
    label: int


class Source(Protocol):
    """A finite set of examples, read by index from any thread.

    Attributes:
      name: short text for logs.
      classes: class names in the order of the labels, or None for an unlabelled set.
    """

    name: str
    classes: list[str] | None

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """Raises OSError where the storage does."""
        ...

    def describe(self, index: int) -> str:
        """Where an example comes from: a path, or `name/split#17`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the set, for a checkpoint's metadata; plain JSON values."""
        ...


class Subset:
    """Some examples of another source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray, *, part: str):
        self.name = f"{source.name} ({part})"
        self.classes = source.classes
        self._source = source
        self._indices = indices
        self._part = part

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        return self._source.read(self._indices[np.asarray(indices)])

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))

    def fingerprint(self) -> dict[str, Any]:
        return self._source.fingerprint() | {"part": self._part, "count": len(self)}
