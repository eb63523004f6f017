"""What a classifier answers for images."""

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import patchify, to_float
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import require
from mae_jax.train.evaluate import collect, compile_eval_step
from mae_jax.train.task import Batch


class Predictions(NamedTuple):
    """Answers for N examples.

    Attributes:
      classes: names, in the order of the labels.
      index: int64 [N], the example in its source.
      label: int32 [N], the right answer.
      best: int32 [N, 5] (or as many as there are classes), the likeliest classes, best first.
      loss: float32 [N], cross-entropy.
    """

    classes: list[str]
    index: np.ndarray
    label: np.ndarray
    best: np.ndarray
    loss: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy in [0, 1], mean loss, and the number of examples."""
        right = self.best == self.label[:, None]
        return {
            "top1": float(right[:, 0].mean()),
            "top5": float(right.any(axis=1).mean()),
            "loss": float(self.loss.mean(dtype=np.float64)),
            "count": float(len(self.label)),
        }

    def confusion(self) -> np.ndarray:
        """int64 [C, C]: how many examples of the row's class were given the column's."""
        size = len(self.classes)
        flat = np.bincount(self.label * size + self.best[:, 0], minlength=size * size)
        return flat.reshape(size, size)

    def write(self, folder: str, describe: Callable[[int], str]) -> list[str]:
        """Writes predictions.csv and per_class.csv; returns their paths.

        Args:
          folder: made when missing.
          describe: where an example comes from, by its index.
        """
        os.makedirs(folder, exist_ok=True)
        each = os.path.join(folder, "predictions.csv")
        with _table(each) as out:
            ranks = [f"top{i + 1}" for i in range(self.best.shape[1])]
            out.writerow(["example", "label", *ranks, "loss"])
            for index, label, best, loss in zip(*self[1:], strict=True):
                names = [self.classes[i] for i in (label, *best)]
                out.writerow([describe(int(index)), *names, f"{loss:.6f}"])
        by_class = os.path.join(folder, "per_class.csv")
        confusion = self.confusion()
        with _table(by_class) as out:
            out.writerow(["class", "examples", "top1"])
            for name, row, right in zip(self.classes, confusion, confusion.diagonal(), strict=True):
                total = int(row.sum())
                out.writerow([name, total, f"{right / total:.4f}" if total else ""])
        return [each, by_class]


@contextlib.contextmanager
def _table(path: str) -> Iterator[Any]:
    """A CSV file that is there whole, or not at all."""
    with (
        filesystem.replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield csv.writer(file)


class Predictor:
    """A classifier as a function of its variables and of batches of images.

    Args:
      model: the classifier.
      classes: their names.
      mean, std: of the pixels, per channel.
    """

    def __init__(
        self,
        model: VisionTransformer,
        classes: list[str],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        self.model, self.classes = model, classes
        self._pixels = {"mean": mean, "std": std}
        self._step: Any = None

    def __call__(
        self, variables: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
    ) -> Predictions:
        """Answers for every valid example.

        Args:
          variables: parameters, and statistics of the model if it has any.
          batches: of `data.eval_batches`.
          mesh: the devices to compute on.

        Raises:
          UsageError: there is no image, or one has no label.
        """
        if self._step is None:
            self._step = compile_eval_step(self._rows, mesh)
        rows = collect(self._step, variables, batches, mesh)
        require(len(rows.get("label", ())) > 0, "no held-out image could be read")
        require(rows["label"].min() >= 0, "some of the held-out images have no label")
        return Predictions(self.classes, *(rows[key] for key in ("index", "label", "best", "loss")))

    def _rows(self, variables: Any, batch: Batch) -> Batch:
        patches = patchify(to_float(batch["image"], **self._pixels), self.model.patch_size)
        logits: Any = self.model.apply(variables, patches)
        labels = batch["label"]
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            "best": jax.lax.top_k(logits, min(5, len(self.classes)))[1],
            "label": labels,
            "index": batch["index"],
            "valid": batch["valid"],
        }
