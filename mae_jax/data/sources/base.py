"""The interface of data sources: random access by index, nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Annotation = Mapping[str, np.ndarray | int]


class Record(NamedTuple):
    """One example before decoding.

    Attributes:
      data: the bytes of an image file, or an array [h, w, C].
      annotation: what is known about the image, by name, in its own coordinates: `label` is the
        class number (-1 or absent: unknown); sources for other tasks have boxes, masks and so on.
        Transforms see it together with the image.
    """

    data: bytes | np.ndarray
    annotation: Annotation

    @property
    def label(self) -> int:
        """The class number; -1 if unknown."""
        return label_of(self.annotation)


def label_of(annotation: Annotation) -> int:
    """The class number of an annotation; -1 if unknown."""
    return int(annotation.get("label", -1))


class Source(Protocol):
    """A finite set of examples, read by index from any thread.

    Attributes:
      name: short text for logs.
      classes: class names in the order of the labels, or None for an unlabeled set.
    """

    name: str
    classes: list[str] | None

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """Raises OSError if the storage does."""
        ...

    def describe(self, index: int) -> str:
        """Where an example comes from: a path, or `name/split#17`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the set in the metadata of checkpoints; plain JSON values."""
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
