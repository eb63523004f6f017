"""kNN and logistic regression on the features of a finished encoder, without training."""

from typing import Any

import jax
import numpy as np

from mae_jax.config.validate import check_combinations
from mae_jax.models import factory, vit
from mae_jax.ops import rng
from mae_jax.ops.patches import patchify, to_float
from mae_jax.runtime.errors import require
from mae_jax.tasks.base import ImageTask, check_places
from mae_jax.tasks.encoder_transfer import adopt_encoder, warn_of_other_pixels
from mae_jax.tasks.image_data import ImageData
from mae_jax.tasks.inheritance import inherit
from mae_jax.tasks.online_probes import OnlineProbes
from mae_jax.train.task import PretrainedParams


class Knn(ImageTask):
    """A run without steps: loads `init_from` and runs the evaluators of `OnlineProbes` once.

    Args:
      config: a configuration of configs/knn.
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
        require(
            config.eval.knn_every > 0 or config.eval.probe_every > 0,
            "nothing to measure: set --config.eval.knn_every=1 or --config.eval.probe_every=1",
        )
        require(
            config.epochs == 0 and config.steps == 0 and config.figure_every == 0,
            "nothing is trained or drawn here: leave --config.epochs, --config.steps and "
            "--config.figure_every at 0",
        )
        self.fields = factory.encoder_fields(config.model) | {"num_classes": 0}
        self.model = factory.build_vit(
            self.fields, dtype=config.model.dtype, attention=config.model.attention
        )
        data = ImageData(config, workdir, image_size=self.model.image_size, make_task=type(self))
        super().__init__(config, workdir, data)
        self.flops_per_image = 2 * vit.forward_macs(self.model)
        self.evaluators = OnlineProbes(data, config.eval, self._encode).evaluators()

    def init_variables(self) -> tuple[Any, Any]:
        return vit.init_variables(self.model, rng.stream_key(self.config.seed, "init"))

    def load_pretrained(
        self, weights: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> PretrainedParams:
        warn_of_other_pixels(metadata["data"], self.pixels)
        return adopt_encoder(self.model, None, weights, metadata)

    def _encode(self, state: Any, images: jax.Array) -> jax.Array:
        patches = to_float(patchify(images, self.model.patch_size), **self.pixels)
        variables = {"params": state.params}
        tokens: Any = self.model.apply(variables, patches, method=self.model.encode)
        return tokens

    def summary(self) -> dict[str, Any]:
        return {
            "model": f"{self.config.model.size} {self.fields}",
            "start": self.config.init_from or "from scratch",
            **super().summary(),
        }
