"""Classification: fine-tuning, partial fine-tuning, linear probing, supervised from scratch.

One task for all of them (paper sections 4 and 4.3, tables 9 to 11): recipes differ only in the
configuration of trained parameters, head, augmentation and optimizer.
"""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.config.validate import check_combinations
from mae_jax.models import factory, vit
from mae_jax.ops import rng
from mae_jax.ops.erasing import random_erasing
from mae_jax.ops.mixing import MixConfig, mix, smooth_one_hot
from mae_jax.ops.patches import patchify, to_float
from mae_jax.ops.trees import combine, partition
from mae_jax.optim import param_groups
from mae_jax.runtime.errors import require
from mae_jax.tasks import figures, next_commands
from mae_jax.tasks.adaptation import mixes
from mae_jax.tasks.base import ImageTask, check_places
from mae_jax.tasks.classification_eval import Predictions, Predictor
from mae_jax.tasks.encoder_transfer import adopt_encoder, warn_of_other_pixels
from mae_jax.tasks.image_data import ImageData
from mae_jax.tasks.inheritance import inherit
from mae_jax.tasks.training_plan import TrainingPlan
from mae_jax.train import run_info
from mae_jax.train.task import Batch, Evaluator, OnBatch, PretrainedParams, ignore_batch

_TIMM_ONLY = (
    "to timm, not to Hugging Face, whose ViT does not pool the mean of the patches "
    "(--config.head.pool=cls exports to both)"
)


class Classify(ImageTask):
    """Trains a classifier; see `train.task.Task` for the interface.

    Args:
      config: a configuration of configs/finetune, linprobe, partial or scratch.
      workdir: folder of the run; "" to write nothing.

    Raises:
      UsageError: the configuration is invalid, or does not match the data.
    """

    def __init__(self, config: Any, workdir: str):
        inherit(config, workdir)
        check_combinations(
            config,
            jax.device_count(),
            lambda: check_places(config, workdir),
            lambda: factory.check_vit(config),
        )
        encoder = factory.encoder_fields(config.model)
        data = ImageData(config, workdir, image_size=encoder["image_size"], make_task=type(self))
        data.require_held_out()
        self.classes = _check_classes(data, config.model.num_classes)
        self.fields = encoder | {
            "num_classes": len(self.classes),
            "pool": config.head.pool,
            "head_std": config.head.init_std,
            "head_norm": config.head.batch_norm,
            "head_norm_group": config.head.batch_norm_group,
            "drop_path": config.model.drop_path,
        }
        self.model = factory.build_vit(
            self.fields,
            dtype=config.model.dtype,
            attention=config.model.attention,
            remat=config.model.remat,
        )
        depth, blocks = self.model.depth, config.trainable_blocks
        require(
            config.trainable != "last" or blocks == 0.5 or blocks in range(1, depth + 1),
            f"--config.trainable_blocks={blocks} must be 0.5 or an integer from 1 to {depth}",
        )
        self._last_blocks = param_groups.last_blocks(depth, blocks)
        decay = config.optim.layer_decay
        plan = TrainingPlan(
            config,
            len(data.train_source),
            decays=param_groups.decays_finetuning,
            scale=None if decay == 1 else lambda n: param_groups.layer_scale(n, depth, decay),
        )
        super().__init__(config, workdir, data, plan)
        self.ema_decay = config.optim.ema
        self.mixing = MixConfig(**config.mix)
        self.mixes = mixes(config)
        self._changes_pixels = self.mixes or config.erase_prob > 0
        # The backward pass counts as two forward passes; frozen layers have none. Partial
        # fine-tuning is counted as if all layers were trained.
        self.flops_per_image = (2 if config.trainable == "head" else 6) * vit.forward_macs(
            self.model
        )
        scores = ("top1", "top5", "loss")
        if self.ema_decay:
            scores += tuple(f"ema_{name}" for name in scores)
        self.evaluators = {"eval": Evaluator(config.eval_every, self.evaluate, scores)}
        self._predictor = Predictor(self.model, self.classes, **self.pixels)
        self._predictions: tuple[int, Predictions] | None = None  # and their step

    # The model.

    def init_variables(self) -> tuple[Any, Any]:
        return vit.init_variables(self.model, rng.stream_key(self.config.seed, "init"))

    def trainable(self, name: str) -> bool:
        which = self.config.trainable
        if which == "last":
            return self._last_blocks(name)
        return which == "all" or name.startswith("head/")

    def load_pretrained(
        self, weights: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> PretrainedParams:
        warn_of_other_pixels(metadata["data"], self.pixels)
        return adopt_encoder(self.model, self.classes, weights, metadata)

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        config, images = self.config, batch["image"]
        erase_key, mix_key, path_key = jax.random.split(key, 3)
        targets = smooth_one_hot(batch["label"], len(self.classes), config.label_smoothing)
        if self._changes_pixels:
            images = to_float(images, **self.pixels)
        if config.erase_prob:
            images = random_erasing(erase_key, images, config.erase_prob)
        if self.mixes:
            images, targets = mix(mix_key, images, targets, self.mixing)
        prepared = {"image": images, "target": targets}
        if config.model.drop_path:
            shape = (images.shape[0], self.model.depth, 2)
            prepared["noise"] = jax.random.uniform(path_key, shape)
        return prepared

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        images, targets = batch["image"], batch["target"]
        if not self._changes_pixels:  # so far they are uint8, a quarter of the memory
            images = to_float(images, **self.pixels)
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

    # Evaluation and reports.

    def evaluate(
        self, state: Any, mesh: Mesh, on_batch: OnBatch = ignore_batch
    ) -> dict[str, float]:
        """Accuracy and loss on the held-out images, also of the averaged weights (`ema_*`)."""
        predictions = self._predict(state.params, state, mesh, on_batch)
        metrics = predictions.metrics()
        if self.ema_decay:
            predictions = self._predict(combine(state.params, state.ema), state, mesh, on_batch)
            average = predictions.metrics()
            metrics |= {f"ema_{key}": average[key] for key in ("top1", "top5", "loss")}
        self._predictions = (int(state.step), predictions)
        return metrics

    def _predict(self, params: Any, state: Any, mesh: Mesh, on_batch: OnBatch) -> Predictions:
        batches = self.data.eval_batches(
            self.data.eval_source, limit=self.config.eval_images, on_batch=on_batch
        )
        return self._predictor({"params": params, **state.model_state}, batches, mesh)

    def figure(self, state: Any, mesh: Mesh) -> np.ndarray:
        """Confusion matrix of the held-out images."""
        if self._predictions is None or self._predictions[0] != int(state.step):
            self.evaluate(state, mesh)
        assert self._predictions is not None
        return figures.confusion_matrix(self._predictions[1].confusion(), self.classes)

    def metadata(self, step: int) -> dict[str, Any]:
        return {
            **super().metadata(step),
            "model": {"kind": "vit", "size": self.config.model.size, **self.fields},
            "classes": self.classes,
        }

    def next_commands(self, workdir: str) -> list[str]:
        held_out = len(self.data.eval_source) > 0
        return next_commands.after_classification(self.config, workdir, held_out=held_out)

    def summary(self) -> dict[str, Any]:
        """Model, trained and frozen parameters, initialization, data, length and rates."""
        config, depth = self.config, self.model.depth
        params, _ = jax.eval_shape(self.init_variables)
        trained, frozen = partition(params, self.trainable)
        scales = [config.optim.layer_decay ** (depth + 1 - i) for i in range(depth + 2)]
        return {
            "model": f"{config.model.size} {self.fields}",
            "trained": run_info.parameter_counts(
                trained, config.optim.weight_decay, param_groups.decays_finetuning
            ),
            "frozen": f"{sum(x.size for x in jax.tree.leaves(frozen)):,}",
            "start": config.init_weights and config.init_from or "from scratch",
            **({"export": _TIMM_ONLY} if config.head.pool == "mean" else {}),
            **super().summary(),
            "layer scales": f"{' '.join(f'{s:.3g}' for s in scales)} (embeddings, blocks, head)",
        }


def _check_classes(data: ImageData, expected: int) -> list[str]:
    """Names of the classes, which must be the same in training and held-out images.

    Args:
      data: the images.
      expected: `config.model.num_classes`; 0 accepts any number.
    """
    train, held_out = data.train_source, data.eval_source
    _require_labels(train)
    classes = list(train.classes or ())
    require(
        expected in (0, len(classes)),
        f"{train.name} has {len(classes)} classes, but --config.model.num_classes={expected}: "
        "wrong folder? (0 accepts any number)",
    )
    if len(held_out):
        require(
            held_out.classes == train.classes,
            f"the held-out images ({held_out.name}) do not have the classes of {train.name} "
            f"({len(classes)}: {', '.join(classes[:3])}, ...): wrong folder?",
        )
        _require_labels(held_out)
    return classes


def _require_labels(source: Any) -> None:
    """Refuses unlabeled images; a prepared test split has classes, but all its labels are -1."""
    require(
        source.classes is not None and source.read([0])[0].label >= 0,
        f"{source.name} has no labels: give every class a folder (docs/data.md)",
    )
