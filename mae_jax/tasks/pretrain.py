"""Pre-training of a masked autoencoder (paper section 3 and table 8)."""

import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax import checkpoint, pictures, rng, run_info, sharding
from mae_jax import evaluate as evaluation
from mae_jax.config import check_common, require
from mae_jax.data import pipeline, sources
from mae_jax.models.mae import train_flops
from mae_jax.ops import masking, targets
from mae_jax.ops.patches import gather, patchify, to_float
from mae_jax.optim.recipe import adamw_recipe
from mae_jax.reconstruct import Reconstruction, reconstruct
from mae_jax.task import Batch
from mae_jax.tasks import mae_model

log = logging.getLogger(__name__)

TARGETS = ("pixel",)
FEW_STEPS = 100


class Pretrain:
    """The masked autoencoder as a task for the loop; `task.Task` says what each part is for.

    Args:
      config: a pre-training configuration.
      workdir: folder of the run; "" when nothing is to be written.

    Raises:
      UsageError: the configuration or its data cannot work.
    """

    def __init__(self, config: Any, workdir: str):
        self.config, self.workdir = config, workdir
        _check(config)
        self.fields = mae_model.model_fields(config.model)
        self.model = mae_model.build(
            self.fields, dtype=config.model.dtype, attention=config.model.attention
        )
        self.num_keep = mae_model.visible_patches(self.model, config.mask.ratio)
        self.pixels = {"mean": tuple(config.data.mean), "std": tuple(config.data.std)}
        found = sources.make_sources(
            config.data,
            image_size=self.model.image_size,
            channels=self.model.channels,
            workdir=workdir or None,
            resuming=checkpoint.exists(workdir),
        )
        self.train_source = found.train
        self.held_out: Any = found.eval or ()
        require(
            len(self.held_out) > 0 or not (config.eval_every or config.picture_every),
            "no held-out images: set --config.data.holdout (or both --config.eval_every=0 and "
            "--config.picture_every=0)",
        )
        num_images = len(self.train_source)
        self.steps_per_epoch = num_images / config.batch_size
        self.num_steps = config.steps or int(config.epochs * self.steps_per_epoch)
        require(
            self.num_steps > 0,
            f"--config.epochs={config.epochs} of {num_images} images is less than one batch of "
            f"{config.batch_size}: lower --config.batch_size or raise --config.epochs",
        )
        if self.num_steps < FEW_STEPS:
            log.warning("only %d updates: too few to learn anything", self.num_steps)
        self.recipe = adamw_recipe(
            config.optim,
            batch_size=config.batch_size,
            epochs=self.num_steps / self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
        )
        self.tx, self.schedule = self.recipe.tx, self.recipe.schedule
        self.flops_per_image = train_flops(self.model, self.num_keep)
        self._eval_step: Any = None
        self._picture_step: Any = None

    # The model.

    def init_params(self) -> Any:
        noise = jnp.zeros((1, self.model.grid[0] * self.model.grid[1]))
        hidden = masking.from_noise(noise, self.config.mask.ratio)
        patch_dim = self.model.patch_size[0] * self.model.patch_size[1] * self.model.channels
        visible = jnp.zeros((1, self.num_keep, patch_dim))
        return self.model.init(rng.stream_key(self.config.seed, "init"), visible, hidden)["params"]

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        sample = masking.NOISE[self.config.mask.kind]
        noise = sample(key, batch["image"].shape[0], self.model.grid)
        return {"image": batch["image"], "noise": noise}

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Batch]:
        loss, baseline = self._losses(params, batch["image"], batch["noise"])
        return loss.mean(), {"baseline_loss": baseline.mean()}

    def _losses(
        self, params: Any, images: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Loss, and loss of predicting each patch by its mean, of each image: float32 [B] each."""
        masked = masking.from_noise(noise, self.config.mask.ratio)
        patches = patchify(images, self.model.patch_size)
        visible = to_float(gather(patches, masked.ids_keep), **self.pixels)
        hidden = to_float(gather(patches, masked.ids_masked), **self.pixels)
        target = targets.pixel_target(hidden, normalize=self.config.target.normalize)
        pred: Any = self.model.apply({"params": params}, visible, masked)
        return targets.reconstruction_loss(pred, target), targets.baseline_loss(target)

    # The data.

    def train_batches(self, start_step: int) -> Any:
        return pipeline.train_batches(
            self.train_source,
            **self._data_options(self.config.batch_size),
            seed=self.config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _data_options(self, batch_size: int) -> dict[str, Any]:
        return {
            "data_config": self.config.data,
            "image_size": self.model.image_size,
            "channels": self.model.channels,
            "batch_size": batch_size,
        }

    # What the user sees.

    def evaluate(self, params: Any, mesh: Mesh) -> dict[str, float]:
        """Reconstruction loss on held-out images, each with a mask that never changes."""
        if self._eval_step is None:
            self._eval_step = evaluation.compile_eval_step(self._eval_sums, mesh)
        batches = pipeline.eval_batches(
            self.held_out,
            # Evaluation has no parts to accumulate over, and must fit where one part fits.
            **self._data_options(self.config.batch_size // self.config.grad_accum),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            limit=self.config.eval_images or None,
        )
        return evaluation.evaluate(self._eval_step, params, batches, mesh)

    def _eval_sums(self, params: Any, batch: Batch) -> evaluation.Sums:
        noise = self._fixed_noise(batch["index"])
        loss, baseline = self._losses(params, batch["image"], noise)
        valid = batch["valid"].astype(jnp.float32)
        return {
            "loss": ((loss * valid).sum(), valid.sum()),
            "baseline_loss": ((baseline * valid).sum(), valid.sum()),
        }

    def _fixed_noise(self, index: jax.Array) -> jax.Array:
        """Mask noise [B, L] that depends on the example alone."""
        key = rng.stream_key(self.config.seed, "eval_mask")
        sample = masking.NOISE[self.config.mask.kind]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        return jax.vmap(lambda k: sample(k, 1, self.model.grid)[0])(keys)

    def picture(self, params: Any, mesh: Mesh) -> np.ndarray:
        """Held-out images with masks that never change, and what the model makes of them."""
        if self._picture_step is None:
            # Every process draws the same few images, so nothing has to be split or collected.
            self._picture_step = jax.jit(self._reconstruct, out_shardings=sharding.replicated(mesh))
            number = min(self.config.picture_images, len(self.held_out))
            options = self._data_options(number)
            batches = pipeline.eval_batches(self.held_out, **options, limit=number)
            batch = next(iter(batches))
            self._picture_batch = {key: batch[key] for key in ("image", "index")}
        views = jax.device_get(self._picture_step(params, self._picture_batch))
        return pictures.reconstruction_grid(views, normalize=self.config.target.normalize)

    def _reconstruct(self, params: Any, batch: Batch) -> Reconstruction:
        masked = masking.from_noise(self._fixed_noise(batch["index"]), self.config.mask.ratio)
        normalize = self.config.target.normalize
        images = batch["image"]
        return reconstruct(self.model, params, images, masked, normalize=normalize, **self.pixels)

    def save_picture(self, image: np.ndarray, step: int) -> str:
        path = os.path.join(self.workdir, "pictures", f"step_{step:08d}.png")
        pictures.save(path, image)
        return path

    def metadata(self, step: int) -> dict[str, Any]:
        config = self.config
        return {
            "task": "pretrain",
            "step": step,
            "epochs_seen": step / self.steps_per_epoch,
            "model": {"kind": "mae", "size": config.model.size, **self.fields},
            "mask": {"kind": config.mask.kind, "ratio": config.mask.ratio},
            "target": {"kind": config.target.kind, "normalize": config.target.normalize},
            "data": {
                **{key: list(value) for key, value in self.pixels.items()},
                "dtype": config.data.dtype,
                "source": self.train_source.fingerprint(),
            },
            "config": config.to_dict(),
            "versions": run_info.versions(),
        }

    def facts(self) -> dict[str, Any]:
        """What a person checks before a long run."""
        config, recipe = self.config, self.recipe
        params = jax.eval_shape(self.init_params)
        decayed, other = run_info.count_decayed(params)
        return {
            "model": f"{config.model.size} {self.fields}",
            "parameters": f"{decayed + other:,}, of which {decayed:,} with weight decay",
            "patches": f"{self.num_keep} of {self.model.grid[0] * self.model.grid[1]} visible",
            "data": f"{self.train_source.name}: {len(self.train_source):,} images; "
            f"held out {len(self.held_out):,}",
            "global batch": f"{config.batch_size} in {config.grad_accum} part(s)",
            "steps": f"{self.num_steps:,} = {self.num_steps / self.steps_per_epoch:.4g} epochs of "
            f"{self.steps_per_epoch:.6g} steps",
            "learning rate": f"{recipe.lr:.4g} (base {config.optim.base_lr} per 256 images), "
            f"warm-up {recipe.warmup_epochs * self.steps_per_epoch:.0f} steps",
        }


def _check(config: Any) -> None:
    """Choices by name exist, and the common keys make sense."""
    check_common(config, jax.device_count())
    for key, value, known in (
        ("mask.kind", config.mask.kind, list(masking.NOISE)),
        ("target.kind", config.target.kind, list(TARGETS)),
        ("model.attention", config.model.attention, ["xla", "cudnn"]),
    ):
        require(value in known, f"--config.{key}={value} is not one of {known}")
