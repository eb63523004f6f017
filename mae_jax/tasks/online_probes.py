"""kNN and a linear probe on frozen features of center crops, to monitor pre-training cheaply.

This is not the paper's linear probing, which takes random crops and 90 epochs (`configs/linprobe`).
kNN accuracy of masked autoencoders is low by nature: compare it only with other masked autoencoders
and over time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.ops import probes
from mae_jax.runtime.errors import require
from mae_jax.tasks.image_data import ImageData
from mae_jax.train.evaluate import collect, compile_eval_step
from mae_jax.train.task import Batch, Evaluator, OnBatch


class OnlineProbes:
    """The evaluators "knn" and "probe".

    Args:
      data: the images.
      options: `config.eval`.
      encode: function (state, images [B, H, W, C]) -> tokens [B, 1 + L, D], class token first,
        after the final norm.

    Raises:
      UsageError: an evaluator is enabled but the images have no labels, or there are fewer
        training images than neighbors.
    """

    def __init__(
        self, data: ImageData, options: Any, encode: Callable[[Any, jax.Array], jax.Array]
    ):
        self._data, self.options = data, options
        self._encode = encode
        self._step: Any = None
        self._cached: tuple[int, Any] = (-1, None)
        if not (self.options.knn_every or self.options.probe_every):
            return
        classes = data.train_source.classes
        require(
            classes is not None
            and len(data.eval_source) > 0
            and data.eval_source.classes == classes,
            "--config.eval.knn_every and probe_every need labeled training and held-out images "
            "of the same classes: set both to 0, or see docs/data.md",
        )
        k, images = self.options.knn_k, self._number_of_training_images()
        require(
            k <= images,
            f"--config.eval.knn_k={k} is more than the {images} training images to choose from: "
            "lower it, or raise --config.eval.train_images",
        )

    def evaluators(self) -> dict[str, Evaluator]:
        """The evaluators by the name of their lines in the metrics."""
        options = self.options
        num_classes = len(self._data.train_source.classes or ())
        knn = functools.partial(probes.knn_scores, k=options.knn_k, num_classes=num_classes)
        probe = functools.partial(probes.logistic_regression, num_classes=num_classes)
        evaluations = {"knn": (options.knn_every, knn), "probe": (options.probe_every, probe)}
        return {
            name: Evaluator(every, functools.partial(self._run, jax.jit(scores)), ("top1",))
            for name, (every, scores) in evaluations.items()
        }

    def _number_of_training_images(self) -> int:
        total = len(self._data.train_source)
        return min(self.options.train_images or total, total)

    def _run(self, scores: Any, state: Any, mesh: Mesh, on_batch: OnBatch) -> dict[str, float]:
        (train, labels), (held_out, answers) = self._features(state, mesh, on_batch)
        guessed = np.asarray(scores(train, labels, held_out)).argmax(axis=1)
        right = float(np.mean(guessed == answers))
        return {"top1": right, "count": float(len(answers)), "train_count": float(len(labels))}

    def _features(self, state: Any, mesh: Mesh, on_batch: OnBatch) -> Any:
        """(features, labels) of training and held-out images, cached for the other evaluator."""
        step = int(state.step)
        if self._cached[0] != step:
            if self._step is None:
                self._step = compile_eval_step(self._rows, mesh)
            data, number = self._data, self._number_of_training_images()
            features = []
            for source, limit in ((data.train_source, number), (data.eval_source, 0)):
                batches = data.eval_batches(source, limit=limit, on_batch=on_batch)
                rows = collect(self._step, state, batches, mesh)
                features.append((rows["feature"], rows["label"]))
            self._cached = (step, features)
        return self._cached[1]

    def _rows(self, state: Any, batch: Batch) -> Batch:
        tokens = self._encode(state, batch["image"]).astype(jnp.float32)
        feature = tokens[:, 0] if self.options.feature == "cls" else tokens[:, 1:].mean(axis=1)
        return {"feature": feature, "label": batch["label"], "valid": batch["valid"]}
