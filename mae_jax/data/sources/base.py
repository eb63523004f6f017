"""The interface of data sources: random access by index, nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Annotation = Mapping[str, Any]


class Record(NamedTuple):
    """One example before decoding.

    Attributes:
      data: the bytes of an image file, or an array [h, w, C].
      annotation: what is known about the image, by name, in its own coordinates: `label` is the
        class number (-1 or absent: unknown), `size` its (height, width), which is checked;
        `DetectionSource` lists boxes and so on. Transforms see it together with the image.
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


class DetectionSource(Source, Protocol):
    """Images with objects.

    The annotation of a record contains, for n objects: `boxes` float32 [n, 4], (x0, y0, x1, y1) in
    pixels; `classes` int32 [n]; `crowd` bool [n]; `segments`, a tuple of n outlines (`segments`);
    `size`, the (height, width) of the image; and `image_id`.

    Attributes:
      category_ids: the ids of the classes in COCO's format.
    """

    category_ids: list[int]

    def image_ids(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        """The `image_id` of some images."""
        ...

    def coco_json(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Some images and their objects in COCO's format, for pycocotools; reads no image."""
        ...


def coco_format(
    source: DetectionSource, images: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> dict[str, Any]:
    """The value of `coco_json`.

    Args:
      source: whose classes are listed.
      images: entries of images, each with the entries of its objects without `id` and `image_id`.
    """
    images = list(images)
    pairs = [(image["id"], entry) for image, entries in images for entry in entries]
    categories = zip(source.category_ids, source.classes or (), strict=True)
    return {
        "images": [image for image, _ in images],
        "categories": [{"id": id, "name": name} for id, name in categories],
        # Numbered from 1: pycocotools takes a match with annotation 0 for none.
        "annotations": [
            {"id": number, "image_id": id, **entry} for number, (id, entry) in enumerate(pairs, 1)
        ],
    }


def unwrapped(source: Source, indices: Sequence[int] | np.ndarray) -> tuple[Source, np.ndarray]:
    """The source inside subsets and caches, and the indices of the same examples in it."""
    inner = np.asarray(indices, np.int64)
    while (unwrap := getattr(source, "unwrap", None)) is not None:
        source, inner = unwrap(inner)
    return source, inner


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

    def unwrap(self, indices: np.ndarray) -> tuple[Source, np.ndarray]:
        """See `unwrapped`."""
        return self._source, self._indices[indices]

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))

    def fingerprint(self) -> dict[str, Any]:
        return self._source.fingerprint() | {"part": self._part, "count": len(self)}
