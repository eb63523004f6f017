"""Predictions of a classifier, their metrics and tables."""

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
    """Predictions for N examples.

    Attributes:
      classes: names, in the order of the labels.
      index: int64 [N], indices of the examples in their source.
      label: int32 [N], true classes.
      best: int32 [N, K], the top K = min(5, number of classes) predictions, best first.
      loss: float32 [N], cross-entropy.
    """

    classes: list[str]
    index: np.ndarray
    label: np.ndarray
    best: np.ndarray
    loss: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy in [0, 1], mean loss and number of examples."""
        right = self.best == self.label[:, None]
        return {
            "top1": float(right[:, 0].mean()),
            "top5": float(right.any(axis=1).mean()),
            "loss": float(self.loss.mean(dtype=np.float64)),
            "count": float(len(self.label)),
        }

    def confusion(self) -> np.ndarray:
        """int64 [C, C]: number of examples by true class (row) and predicted class (column)."""
        size = len(self.classes)
        flat = np.bincount(self.label * size + self.best[:, 0], minlength=size * size)
        return flat.reshape(size, size)

    def write(self, folder: str, describe: Callable[[int], str]) -> list[str]:
        """Writes predictions.csv and per_class.csv; returns their paths.

        Args:
          folder: created if missing.
          describe: maps the index of an example to its origin, such as a path.
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
    """Writer of a CSV file that appears only once it is complete."""
    with (
        filesystem.replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield csv.writer(file)


class Predictor:
    """A classifier as a function from variables and batches to predictions.

    Args:
      model: the classifier.
      classes: names of the classes.
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
        """Predicts the classes of all valid examples.

        Args:
          variables: parameters, and batch statistics if the model has any.
          batches: from `data.eval_batches`.
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
