"""The `shapes` source: labeled images drawn by this project, deterministic and offline."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Record
from mae_jax.runtime.errors import UsageError


class ShapesSource:
    """The embedded set: example i of a split is drawn from its number whenever it is read."""

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
    ):
        from mae_jax.data.sources import shapes_drawing

        self.name = f"shapes/{split}"
        self.classes: list[str] | None = list(shapes_drawing.CLASSES)
        self._draw = shapes_drawing.draw
        self._start = start
        self._count = count
        self._image_size = tuple(math.ceil(side * self.MARGIN) for side in image_size)
        self._channels = channels
        self._scenes = scenes

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        scenes = (
            self._draw(
                self._start + int(index),
                image_size=self._image_size,
                seed=0,
                channels=self._channels,
                plain=self._scenes == "plain",
            )
            for index in indices
        )
        return [Record(scene.image, {"label": scene.label}) for scene in scenes]

    def describe(self, index: int) -> str:
        return f"{self.name}#{index}"

    def fingerprint(self) -> dict[str, Any]:
        kind = "" if self._scenes == "cluttered" else f", {self._scenes}"
        return {
            "kind": "shapes",
            "name": "shapes",
            "split": self.name,
            "count": len(self),
            "hash": f"start {self._start}, size {self._image_size}{kind}",
        }


def make_shapes_sources(
    options: DataOptions, *, image_size: tuple[int, int], channels: int, **_: Any
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
    }
    train = ShapesSource("train", start=0, count=options.num_train, **common)
    if options.num_eval < 1:
        return train, None
    start = ShapesSource.EVAL_START
    return train, ShapesSource("eval", start=start, count=options.num_eval, **common)
