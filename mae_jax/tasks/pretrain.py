"""Pre-training of a masked autoencoder (paper section 3 and table 8)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.config.validate import check_combinations
from mae_jax.models import factory
from mae_jax.models.mae import init_params, train_flops
from mae_jax.models.reconstruct import Reconstruction, reconstruct
from mae_jax.ops import masking, rng
from mae_jax.ops.patches import patchify, to_float
from mae_jax.ops.trees import unflatten
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import figures, fit_pca, next_commands
from mae_jax.tasks.base import ImageTask, check_places
from mae_jax.tasks.encoder_transfer import check_same_heads, warn_of_other_pixels
from mae_jax.tasks.image_data import ImageData
from mae_jax.tasks.inheritance import inherit
from mae_jax.tasks.online_probes import OnlineProbes
from mae_jax.tasks.pretrain_targets import make_target
from mae_jax.tasks.training_plan import TrainingPlan
from mae_jax.train import run_info
from mae_jax.train.evaluate import Sums, compile_eval_step, evaluate
from mae_jax.train.task import Batch, Evaluator, OnBatch, PretrainedParams, ignore_batch

_LAST = "decoder_pred/"


class Pretrain(ImageTask):
    """Pre-trains a masked autoencoder; see `train.task.Task` for the interface.

    Args:
      config: a pre-training configuration.
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
            lambda: factory.check_mae(config),
        )
        self._predict_all = config.target.loss_on == "all"
        self.fields = factory.mae_fields(config.model)
        spec = factory.patch_spec(self.fields, config.data)
        self.target = make_target(config, spec, workdir)
        if self.target.width != spec.patch_dim:
            self.fields["pred_dim"] = self.target.width
        self._sample_noise = masking.find(config.mask.kind)
        self.model = factory.build_mae(
            self.fields,
            dtype=config.model.dtype,
            attention=config.model.attention,
            remat=config.model.remat,
        )
        self.num_keep = factory.visible_patches(self.model, config.mask)
        data = ImageData(config, workdir, image_size=self.model.image_size, make_task=type(self))
        data.require_held_out()
        super().__init__(config, workdir, data, TrainingPlan(config, len(data.train_source)))
        self.flops_per_image = train_flops(self.model, self.num_keep)
        probes = OnlineProbes(data, config.eval, self._encode)
        self.evaluators = {"eval": Evaluator(config.eval_every, self.evaluate, ("loss",))}
        self.evaluators |= probes.evaluators()
        self._eval_step: Any = None
        self._figure = figures.HeldOutFigure(
            lambda: data.first_held_out(config.figure_images), self._reconstruct
        )

    # The model.

    def init_variables(self) -> tuple[Any, Any]:
        params = init_params(self.model, rng.stream_key(self.config.seed, "init"))
        arrays = {name: jnp.zeros(x.shape, x.dtype) for name, x in self.target.arrays.items()}
        return params, {"target": unflatten(arrays)} if arrays else {}

    def initial_model_state(self) -> dict[str, np.ndarray]:
        target = self.target
        arrays = fit_pca.fit(self, target.spec) if target.learned else target.arrays
        return {f"target/{name}": x for name, x in arrays.items()}

    def load_pretrained(
        self, weights: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> PretrainedParams:
        if metadata["model"]["kind"] != "mae":
            raise UsageError(
                f"--config.init_from is a {metadata['model']['kind']} without a decoder: "
                "pre-training continues only from a pre-training run"
            )
        check_same_heads(metadata["model"], self.model.num_heads)
        warn_of_other_pixels(metadata["data"], self.pixels)
        kinds = {metadata["target"]["kind"], self.config.target.kind}
        if kinds == {"pixel"}:
            return PretrainedParams(weights)
        # The last layer is specific to the target it was trained for.
        kept = {name: x for name, x in weights.items() if not name.startswith(_LAST)}
        unused = tuple(sorted(weights.keys() - kept.keys()))
        return PretrainedParams(kept, reinitialized=(_LAST,), unused=unused)

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        noise = self._sample_noise(key, batch["image"].shape[0], self.model.grid, self.num_keep)
        return {"image": batch["image"], "noise": noise}

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        images, noise = batch["image"], batch["noise"]
        loss, baseline = self._losses(params, model_state, images, noise, jnp.ones(len(images)))
        return loss.mean(), ({"baseline_loss": baseline.mean()}, model_state)

    def _losses(
        self,
        params: Any,
        model_state: Any,
        images: jax.Array,
        noise: jax.Array,
        valid: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Loss and baseline loss (`Target.baseline_loss`) of each image: float32 [B] each."""
        masked = masking.from_noise(noise, self.config.mask.ratio)
        visible = self.target.spec.patches(images, masked.ids_keep)
        arrays = model_state.get("target", {})
        ids = masked.ids_shuffle if self._predict_all else masked.ids_masked
        targets = self.target.targets(arrays, images, ids)
        pred: Any = self.model.apply({"params": params}, visible, masked, self._predict_all)
        return self.target.loss(pred, targets), self.target.baseline_loss(targets, valid)

    def _encode(self, state: Any, images: jax.Array) -> jax.Array:
        """Latent tokens [B, 1 + L, D] of unmasked images."""
        patches = to_float(patchify(images, self.model.patch_size), **self.pixels)
        ids = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
        variables = {"params": state.params}
        latent: Any = self.model.apply(variables, patches, ids, method=self.model.encode)
        return latent

    # Evaluation and reports.

    def evaluate(
        self, state: Any, mesh: Mesh, on_batch: OnBatch = ignore_batch
    ) -> dict[str, float]:
        """Reconstruction loss on held-out images, each with a fixed mask."""
        if self._eval_step is None:
            self._eval_step = compile_eval_step(self._eval_sums, mesh)
        batches = self.data.eval_batches(
            self.data.eval_source, limit=self.config.eval_images, on_batch=on_batch
        )
        return evaluate(self._eval_step, _variables(state), batches, mesh)

    def _eval_sums(self, variables: tuple[Any, Any], batch: Batch) -> Sums:
        noise = self._fixed_noise(batch["index"])
        valid = batch["valid"].astype(jnp.float32)
        loss, baseline = self._losses(*variables, batch["image"], noise, valid)
        return {
            "loss": ((loss * valid).sum(), valid.sum()),
            "baseline_loss": ((baseline * valid).sum(), valid.sum()),
        }

    def _fixed_noise(self, index: jax.Array) -> jax.Array:
        """Mask noise [B, L] that depends only on the seed and the index of the example."""
        key = rng.stream_key(self.config.seed, "eval_mask")
        sample, shape = self._sample_noise, (self.model.grid, self.num_keep)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        return jax.vmap(lambda k: sample(k, 1, *shape)[0])(keys)

    def figure(self, state: Any, mesh: Mesh) -> np.ndarray:
        """Reconstructions of a few held-out images with fixed masks."""
        _, views = self._figure.compute(_variables(state), mesh)
        return figures.reconstruction_grid(
            views, self.target.caption, mask_kind=self.config.mask.kind, raw=self._predict_all
        )

    def _reconstruct(self, variables: Any, batch: Batch) -> Reconstruction:
        params, model_state = variables
        masked = masking.from_noise(self._fixed_noise(batch["index"]), self.config.mask.ratio)
        arrays = model_state.get("target", {})
        return reconstruct(self.model, params, batch["image"], masked, self.target, arrays)

    def metadata(self, step: int) -> dict[str, Any]:
        config = self.config
        return {
            **super().metadata(step),
            "model": {"kind": "mae", "size": config.model.size, **self.fields},
            "mask": {"kind": config.mask.kind, "ratio": config.mask.ratio},
            "target": {"kind": config.target.kind, **self.target.metadata()},
        }

    def next_commands(self, workdir: str) -> list[str]:
        labeled = bool(self.data.train_source.classes)
        return next_commands.after_pretraining(self.config, workdir, labeled=labeled)

    def summary(self) -> dict[str, Any]:
        """Model, parameters, visible patches, data, length and learning rate."""
        params, _ = jax.eval_shape(self.init_variables)
        return {
            "model": f"{self.config.model.size} {self.fields}",
            "parameters": run_info.parameter_counts(params, self.config.optim.weight_decay),
            "patches": f"{self.num_keep} of {self.model.grid[0] * self.model.grid[1]} visible",
            **super().summary(),
        }


def _variables(state: Any) -> tuple[Any, Any]:
    """The parts of a state that evaluation needs."""
    return state.params, state.model_state
