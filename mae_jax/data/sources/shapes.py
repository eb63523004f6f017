"""The `shapes` source: labeled images drawn by this project, deterministic and offline."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_jax.data import segments
from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Annotation, Record, coco_format
from mae_jax.runtime.errors import UsageError

if TYPE_CHECKING:
    from mae_jax.data.sources.shapes_drawing import Scene

ALL_CLASSES = 12


class ShapesSource:
    """The embedded set: example i of a split is drawn from its number whenever it is read.

    With `objects` it is a `DetectionSource`: annotations list all visible objects with the pixels
    that can be seen of them, and the boxes around these.
    """

    # Drawn larger than the model's input so that crops are real crops.
    MARGIN = 1.25
    # Evaluation numbers start here, beyond those of any training set.
    EVAL_START = 1 << 40

    def __init__(
        self,
        split: str,
        *,
        start: int,
        count: int,
        image_size,
        channels: int,
        scenes: str = "cluttered",
        num_classes: int = ALL_CLASSES,
        objects: bool = False,
    ):
        from mae_jax.data.sources import shapes_drawing

        self.name = f"shapes/{split}"
        self.classes: list[str] | None = list(shapes_drawing.CLASSES[:num_classes])
        self.category_ids = [number + 1 for number in range(len(self.classes))]
        self._draw = shapes_drawing.draw
        self._start = start
        self._count = count
        self._image_size = tuple(math.ceil(side * self.MARGIN) for side in image_size)
        self._channels = channels
        self._scenes = scenes
        self._objects = objects

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        scenes = ((int(index), self._scene(int(index))) for index in indices)
        return [Record(scene.image, self._annotation(index, scene)) for index, scene in scenes]

    def _scene(self, index: int) -> "Scene":
        return self._draw(
            self._start + index,
            image_size=self._image_size,
            seed=0,
            channels=self._channels,
            plain=self._scenes == "plain",
            classes=len(self.category_ids),
        )

    def _annotation(self, index: int, scene: "Scene") -> Annotation:
        if not self._objects:
            return {"label": scene.label}
        return {
            "label": scene.label,
            "boxes": scene.boxes[:, [1, 0, 3, 2]],
            "classes": scene.classes,
            "crowd": np.zeros(len(scene.classes), bool),
            "segments": tuple(map(segments.encode, scene.masks)),
            "size": self._image_size,
            "image_id": self.image_ids([index])[0],
        }

    def image_ids(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        return [int(index) + 1 for index in indices]

    def coco_json(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return coco_format(self, (self._entries(int(index)) for index in indices))

    def _entries(self, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        scene = self._scene(index)
        height, width = self._image_size
        objects = [
            {
                "category_id": self.category_ids[kind],
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "area": float(mask.sum()),
                "iscrowd": 0,
                "segmentation": segments.to_coco(segments.encode(mask)),
            }
            for kind, (y0, x0, y1, x1), mask in zip(
                scene.classes, scene.boxes, scene.masks, strict=True
            )
        ]
        (id,), name = self.image_ids([index]), self.describe(index)
        return {"id": id, "file_name": name, "height": height, "width": width}, objects

    def describe(self, index: int) -> str:
        return f"{self.name}#{index}"

    def fingerprint(self) -> dict[str, Any]:
        kind = "" if self._scenes == "cluttered" else f", {self._scenes}"
        if len(self.category_ids) < ALL_CLASSES:
            kind += f", {len(self.category_ids)} classes"
        return {
            "kind": "shapes",
            "name": "shapes",
            "split": self.name,
            "count": len(self),
            "hash": f"start {self._start}, size {self._image_size}{kind}",
        }


def make_shapes_sources(
    options: DataOptions,
    *,
    image_size: tuple[int, int],
    channels: int,
    objects: bool = False,
    **_: Any,
) -> tuple[ShapesSource, ShapesSource | None]:
    """The training source and, if `num_eval` is not 0, the evaluation source.

    Raises:
      UsageError: `num_train` is too large.
    """
    if options.num_train > ShapesSource.EVAL_START:
        raise UsageError(f"--config.data.num_train={options.num_train} is too large")
    common: dict[str, Any] = {
        "image_size": image_size,
        "channels": channels,
        "scenes": options.scenes,
        "num_classes": options.shape_classes,
        "objects": objects,
    }
    train = ShapesSource("train", start=0, count=options.num_train, **common)
    if options.num_eval < 1:
        return train, None
    start = ShapesSource.EVAL_START
    return train, ShapesSource("eval", start=start, count=options.num_eval, **common)
