"""Detection and instance segmentation (paper section 5, table 4)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.config.validate import check_combinations
from mae_jax.data.transforms.scale_jitter import ScaleJitter
from mae_jax.models import factory, mask_rcnn
from mae_jax.models.mask_rcnn import LOSSES, Objects
from mae_jax.ops import rng
from mae_jax.optim import param_groups
from mae_jax.runtime.errors import require
from mae_jax.tasks import coco_eval, detection_figures, next_commands
from mae_jax.tasks.base import ImageTask, check_places
from mae_jax.tasks.detection_eval import Detector, ImageDetections, normalize
from mae_jax.tasks.encoder_transfer import adopt_backbone, warn_of_other_pixels
from mae_jax.tasks.image_data import ImageData
from mae_jax.tasks.inheritance import inherit
from mae_jax.tasks.training_plan import TrainingPlan
from mae_jax.train import run_info
from mae_jax.train.task import Batch, Evaluator, OnBatch, PretrainedParams, ignore_batch

# Of COCO's metrics; `tools.evaluate` also has the average recall.
SCORES = tuple(name for name in coco_eval.METRICS if "_ap" in name)


class Detect(ImageTask):
    """Trains Mask R-CNN on the encoder; see `train.task.Task` for the interface.

    Args:
      config: a configuration of configs/detection.
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
            lambda: factory.check_detector(config),
        )
        size = factory.encoder_fields(config.model)["image_size"]
        data = ImageData(
            config,
            workdir,
            image_size=size,
            make_task=type(self),
            transforms={
                train: ScaleJitter(config.data, image_size=size, train=train)
                for train in (True, False)
            },
        )
        data.require_held_out()
        self.classes = _check_classes(data, config.model.num_classes)
        self.fields = factory.detector_fields(config) | {"num_classes": len(self.classes)}
        self.model = factory.build_detector(
            self.fields, dtype=config.model.dtype, remat=config.model.remat
        )
        self._depth = self.fields["depth"]
        decay = config.optim.layer_decay
        plan = TrainingPlan(
            config,
            len(data.train_source),
            decays=param_groups.DECAYS[config.optim.decays],
            scale=lambda name: param_groups.backbone_scale(name, self._depth, decay),
        )
        super().__init__(config, workdir, data, plan)
        self.flops_per_image = 6 * mask_rcnn.forward_macs(self.model)
        self.evaluators = {"eval": Evaluator(config.eval_every, self.evaluate, SCORES)}
        self._detector = Detector(self.model, self.pixels)

    # The model.

    def init_variables(self) -> tuple[Any, Any]:
        return mask_rcnn.init_variables(self.model, rng.stream_key(self.config.seed, "init"))

    def load_pretrained(
        self, weights: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> PretrainedParams:
        warn_of_other_pixels(metadata["data"], self.pixels)
        return adopt_backbone(self.fields, self.classes, weights, metadata)

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        sample_key, path_key = jax.random.split(key)
        rows = batch["image"].shape[0]
        # Raw data, because typed keys cannot be split into micro-batches.
        keys = jax.random.key_data(jax.random.split(sample_key, rows))
        prepared = batch | {"key": keys}
        if self.config.model.drop_path:
            prepared["noise"] = jax.random.uniform(path_key, (rows, self._depth, 2))
        return prepared

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        sums: Any
        sums, new = self.model.apply(
            {"params": params, **model_state},
            normalize(batch["image"], batch["size"], self.pixels),
            batch["size"],
            Objects(batch["boxes"], batch["classes"], batch["object_valid"], batch["masks"]),
            jax.random.wrap_key_data(batch["key"]),
            batch.get("noise"),
            train=True,
            mutable=["batch_stats"],
        )
        # Per image, then averaged over images: one image per device in the published runs.
        parts = {name: (total / count.clip(1)).mean() for name, (total, count) in sums.items()}
        total = jnp.stack([parts[name] for name in LOSSES]).sum()
        return total, (parts, model_state | dict(new))

    # Evaluation and reports.

    def evaluate(
        self, state: Any, mesh: Mesh, on_batch: OnBatch = ignore_batch
    ) -> dict[str, float]:
        """COCO's average precision of boxes and masks on the held-out images."""
        found = self._detect(state, mesh, limit=self.config.eval_images, on_batch=on_batch)
        if not found:  # the images could not be read: the loop evaluates again
            return {"count": 0.0}
        metrics = score(self.data.eval_source, found).metrics
        return {name: metrics[name] for name in ("count", *SCORES)}

    def figure(self, state: Any, mesh: Mesh) -> np.ndarray:
        """Held-out images with their true objects, and with the detected ones."""
        found = self._detect(state, mesh, limit=self.config.figure_images)
        return detection_figures.comparison(
            self.data.eval_source,
            found,
            self.classes,
            self.config.data,
            min_score=detection_figures.MIN_SCORE,
        )

    def _detect(
        self, state: Any, mesh: Mesh, *, limit: int, on_batch: OnBatch = ignore_batch
    ) -> list[ImageDetections]:
        """Detections in `limit` evenly spaced held-out images, or in all of them if it is 0."""
        batches = self.data.eval_batches(self.data.eval_source, limit=limit, on_batch=on_batch)
        return self._detector({"params": state.params, **state.model_state}, batches, mesh)

    def metadata(self, step: int) -> dict[str, Any]:
        return {
            **super().metadata(step),
            "model": {"kind": "mask_rcnn", "size": self.config.model.size, **self.fields},
            "classes": self.classes,
        }

    def next_commands(self, workdir: str) -> list[str]:
        return next_commands.after_detection(self.config, workdir)

    def summary(self) -> dict[str, Any]:
        """Model, parameters, initialization, data, length and rates."""
        config = self.config
        params, _ = jax.eval_shape(self.init_variables)
        decays = param_groups.DECAYS[config.optim.decays]
        return {
            "model": f"{config.model.size} {self.fields}",
            "parameters": run_info.parameter_counts(params, config.optim.weight_decay, decays),
            "start": config.init_from or "from scratch",
            **super().summary(),
        }


def score(source: Any, found: list[ImageDetections]) -> Any:
    """COCO's scores of the detections in the images of a source."""
    results = coco_eval.coco_results(source, found)
    return coco_eval.evaluate(source, [image.index for image in found], results)


def _check_classes(data: ImageData, expected: int) -> list[str]:
    """Names of the classes, which must be the same in training and held-out images."""
    train, held_out = data.train_source, data.eval_source
    classes = list(train.classes or ())
    require(bool(classes), f"{train.name} has no object classes: see docs/detection.md")
    require(
        expected in (0, len(classes)),
        f"{train.name} has {len(classes)} classes, but --config.model.num_classes={expected}: "
        "wrong annotations? (0 accepts any number)",
    )
    require(
        not len(held_out) or held_out.classes == train.classes,
        f"the held-out images ({held_out.name if len(held_out) else ''}) do not have the classes "
        f"of {train.name}",
    )
    return classes
