"""Classification: fine-tuning, partial fine-tuning, linear probing, supervised from scratch.

One mechanism for all of them (paper sections 4 and 4.3, tables 9 to 11): the recipes differ in what
is trained, in the head, in the augmentation and in the optimiser, and all that is configuration.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import evaluate as evaluation
from mae_jax import plots, rng, run_info
from mae_jax.config import check_common, require
from mae_jax.data import Sources
from mae_jax.models.vit import forward_macs
from mae_jax.ops.erasing import random_erasing
from mae_jax.ops.mixing import Mix, mix, smooth_one_hot
from mae_jax.ops.patches import patchify, to_float
from mae_jax.optim import param_groups
from mae_jax.scores import Predictions
from mae_jax.task import Batch, Evaluator, Weights
from mae_jax.tasks import build
from mae_jax.tasks.adopt import adopt_encoder
from mae_jax.tasks.base import ImageTask

TRAINABLE = ("all", "head", "last")


class Classify(ImageTask):
    """A classifier as a task for the loop; `task.Task` says what each part is for.

    Args:
      config: a configuration of configs/finetune, linprobe, partial or scratch.
      workdir: folder of the run; "" when nothing is to be written.
      found: the images; None finds those of `config.data`.

    Raises:
      UsageError: the configuration or its data cannot work.
    """

    def __init__(self, config: Any, workdir: str, found: Sources | None = None):
        _check(config)
        encoder = build.encoder_fields(config.model)
        super().__init__(config, workdir, image_size=encoder["image_size"], found=found)
        self.require_held_out()
        self.classes = self._check_classes()
        self.fields = encoder | {
            "num_classes": len(self.classes),
            "pool": config.head.pool,
            "head_std": config.head.init_std,
            "head_norm": config.head.batch_norm,
            "head_norm_group": config.head.batch_norm_group,
            "drop_path": config.model.drop_path,
        }
        self.model = build.build_vit(
            self.fields, dtype=config.model.dtype, attention=config.model.attention
        )
        depth, blocks = self.model.depth, config.trainable_blocks
        require(
            config.trainable != "last" or blocks == 0.5 or blocks in range(1, depth + 1),
            f"--config.trainable_blocks={blocks} must be 0.5 or a whole number from 1 to {depth}",
        )
        self._last_blocks = param_groups.last_blocks(depth, blocks)
        self.set_length()
        decay = config.optim.layer_decay
        self.set_recipe(
            exempt=param_groups.TOKENS_AND_POSITIONS,
            scale=None if decay == 1 else lambda n: param_groups.layer_scale(n, depth, decay),
        )
        self.ema_decay = config.optim.ema
        self.mixing = Mix(**config.mix)
        self.mixes = _mixes(config)
        # A pass backwards is two more; below frozen blocks there is none. (The parts in between,
        # of partial fine-tuning, are counted as if all were trained.)
        self.flops_per_image = (2 if config.trainable == "head" else 6) * forward_macs(self.model)
        self.evaluators = {"eval": Evaluator(config.eval_every, self.evaluate)}
        self._row_step: Any = None
        self.predictions: Predictions | None = None

    def _check_classes(self) -> list[str]:
        """Names of the classes, the same in the training and the held-out images."""
        train, held_out, wanted = self.train_source, self.held_out, self.config.model.num_classes
        require(
            train.classes is not None,
            f"{train.name} has no labels: give every class a folder of its own (docs/data.md)",
        )
        classes = list(train.classes or ())
        require(
            wanted in (0, len(classes)),
            f"{train.name} has {len(classes)} classes where --config.model.num_classes={wanted}: "
            "wrong folder? (0 takes what the data have)",
        )
        other = list(getattr(held_out, "classes", classes) or ())
        require(
            other == classes,
            f"the held-out images ({getattr(held_out, 'name', '')}) do not have the classes of "
            f"{train.name} ({len(classes)}: {', '.join(classes[:3])}, ...): wrong folder?",
        )
        return classes

    # The model.

    def init_variables(self) -> tuple[Any, Any]:
        rows = self.config.head.batch_norm_group or 1
        patch_dim = self.model.patch_size[0] * self.model.patch_size[1] * self.model.channels
        patches = jnp.zeros((rows, self.model.grid[0] * self.model.grid[1], patch_dim))
        variables = self.model.init(rng.stream_key(self.config.seed, "init"), patches)
        params = variables.pop("params")
        return params, dict(variables)

    def trainable(self, name: str) -> bool:
        which = self.config.trainable
        if which == "last":
            return self._last_blocks(name)
        return which == "all" or name.startswith("head/")

    def adopt(self, weights: dict[str, np.ndarray], metadata: dict[str, Any]) -> Weights:
        return adopt_encoder(self.model, self.classes, weights, metadata)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        config, images = self.config, batch["image"]
        erase_key, mix_key, path_key = jax.random.split(key, 3)
        targets = smooth_one_hot(batch["label"], len(self.classes), config.label_smoothing)
        if config.erase_prob or self.mixes:
            images = self._normalize(images)
        if config.erase_prob:
            images = random_erasing(erase_key, images, config.erase_prob)
        if self.mixes:
            images, targets = mix(mix_key, images, targets, self.mixing)
        prepared = {"image": images, "target": targets}
        if config.model.drop_path:
            shape = (images.shape[0], self.model.depth, 2)
            prepared["noise"] = jax.random.uniform(path_key, shape)
        return prepared

    def _normalize(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C], normalised."""
        return to_float(images, **self.pixels)

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        images, targets = batch["image"], batch["target"]
        if not (self.config.erase_prob or self.mixes):
            images = self._normalize(images)
        patches = patchify(images, self.model.patch_size)
        logits: Any
        logits, new = self.model.apply(
            {"params": params, **model_state},
            patches,
            batch.get("noise"),
            train=True,
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        right = (logits.argmax(axis=1) == targets.argmax(axis=1)).mean()
        return loss, ({"top1": right}, model_state | dict(new))

    # What the user sees.

    def evaluate(self, state: Any, mesh: Mesh) -> dict[str, float]:
        """Accuracy and loss on the held-out images; of the average of the weights too, if kept."""
        params = state.params
        self.predictions = self.predict(params, state.model_state, mesh)
        metrics = self.predictions.metrics()
        if self.ema_decay:
            _, frozen = param_groups.split(params, self.trainable)
            average = param_groups.merge(state.ema, frozen)
            self.predictions = self.predict(average, state.model_state, mesh)
            metrics |= {f"ema_{k}": v for k, v in self.predictions.metrics().items()}
            del metrics["ema_count"]
        return metrics

    def predict(self, params: Any, model_state: Any, mesh: Mesh) -> Predictions:
        """Answers for every held-out image, or `eval_images` of them."""
        if self._row_step is None:
            self._row_step = evaluation.compile_eval_step(self._rows, mesh)
        batches = self.eval_batches(self.held_out, limit=self.config.eval_images)
        variables = {"params": params, **model_state}
        rows = evaluation.collect(self._row_step, variables, batches, mesh)
        return Predictions(
            self.classes, rows["index"], rows["label"], rows["best"], rows["loss"].astype(float)
        )

    def _rows(self, variables: Any, batch: Batch) -> Batch:
        patches = patchify(self._normalize(batch["image"]), self.model.patch_size)
        logits: Any = self.model.apply(variables, patches)
        labels = batch["label"]
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            "best": jax.lax.top_k(logits, min(5, len(self.classes)))[1],
            "label": labels,
            "index": batch["index"],
            "valid": batch["valid"],
        }

    def picture(self, state: Any, mesh: Mesh) -> np.ndarray:
        """Confusion matrix of the latest evaluation."""
        if self.predictions is None:
            self.evaluate(state, mesh)
        assert self.predictions is not None
        return plots.confusion_matrix(self.predictions.confusion(), self.classes)

    def metadata(self, step: int) -> dict[str, Any]:
        return {
            **super().metadata(step),
            "model": {"kind": "vit", "size": self.config.model.size, **self.fields},
            "classes": self.classes,
        }

    def facts(self) -> dict[str, Any]:
        """What a person checks before a long run."""
        params, _ = jax.eval_shape(self.init_variables)
        trained, frozen = param_groups.split(params, self.trainable)
        exempt = param_groups.TOKENS_AND_POSITIONS
        return {
            "model": f"{self.config.model.size} {self.fields}",
            "trained": run_info.parameter_counts(trained, exempt),
            "frozen": f"{sum(x.size for x in jax.tree.leaves(frozen)):,}",
            "start": self.config.init_from or "from scratch",
            **self.data_facts(),
            **self.length_facts(),
            "layer decay": f"{self.config.optim.layer_decay}",
        }


def _check(config: Any) -> None:
    """Choices by name exist, and the numbers are in range."""
    check_common(config, jax.device_count())
    for key, value, known in (
        ("trainable", config.trainable, TRAINABLE),
        ("head.pool", config.head.pool, ("cls", "mean")),
    ):
        require(value in known, f"--config.{key}={value} is not one of {known}")
    shares = {
        "model.drop_path": config.model.drop_path,
        "label_smoothing": config.label_smoothing,
        "erase_prob": config.erase_prob,
        "optim.ema": config.optim.ema,
    }
    for key, value in shares.items():
        require(0 <= value < 1, f"--config.{key}={value} must be in [0, 1)")
    batch, part = config.batch_size, config.batch_size // config.grad_accum
    group = config.mix.group
    require(
        (group > 0 and batch % group == 0) or not _mixes(config),
        f"--config.mix.group={group} does not divide --config.batch_size={batch}",
    )
    group = config.head.batch_norm_group or part
    require(
        part % group == 0 or not config.head.batch_norm,
        f"--config.head.batch_norm_group={group} does not divide the {part} images of one of "
        f"{config.grad_accum} part(s) of a batch: lower it, or 0 for all of them",
    )


def _mixes(config: Any) -> bool:
    return config.mix.mixup > 0 or config.mix.cutmix > 0
