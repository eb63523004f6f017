"""What a classifier answers for images."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import evaluate as evaluation
from mae_jax.config import require
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import patchify, to_float
from mae_jax.scores import Predictions
from mae_jax.task import Batch


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
            self._step = evaluation.compile_eval_step(self._rows, mesh)
        rows = evaluation.collect(self._step, variables, batches, mesh)
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
