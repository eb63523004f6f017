"""Training of a tokenizer: a discrete variational autoencoder (Ramesh et al., 2102.12092)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.config.diff import pair
from mae_jax.config.validate import check_combinations
from mae_jax.models import dvae, factory
from mae_jax.ops import rng
from mae_jax.runtime.errors import require
from mae_jax.tasks import figures
from mae_jax.tasks.base import ImageTask, check_places
from mae_jax.tasks.image_data import ImageData
from mae_jax.tasks.inheritance import inherit
from mae_jax.tasks.training_plan import TrainingPlan
from mae_jax.train import run_info
from mae_jax.train.evaluate import compile_eval_step, stream
from mae_jax.train.task import Batch, Evaluator, OnBatch, ignore_batch

_FROM_SCRATCH = (
    "a tokenizer starts from scratch: leave --config.init_from empty (--config.resume continues "
    "another run)"
)


class Tokenizer(ImageTask):
    """Trains a discrete VAE; see `train.task.Task` for the interface.

    Training uses the Gumbel-softmax relaxation: the decoder sees softmax((logits + noise) / T),
    with T decreasing exponentially over the run. The loss is the negative evidence lower bound per
    pixel and channel, with `kl_weight` as the weight of the KL divergence from the uniform
    distribution.

    Args:
      config: a configuration of configs/tokenizer.py.
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
            lambda: _fields(config),
        )
        self.fields = _fields(config)
        self.model = dvae.DiscreteVAE(
            **self.fields, dtype=factory.compute_dtype(config.model.dtype)
        )
        data = ImageData(config, workdir, image_size=self.model.image_size, make_task=type(self))
        data.require_held_out()
        super().__init__(config, workdir, data, TrainingPlan(config, len(data.train_source)))
        self.flops_per_image = 6 * dvae.forward_macs(self.model)
        self.evaluators = {"eval": Evaluator(config.eval_every, self.evaluate, ("loss", "mse"))}
        self._eval_step: Any = None
        self._figure = figures.HeldOutFigure(
            lambda: data.first_held_out(config.figure_images), self._reconstruct
        )

    def init_variables(self) -> tuple[Any, Any]:
        return dvae.init_params(self.model, rng.stream_key(self.config.seed, "init")), {}

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        # Seeds instead of the noise itself, which takes more memory than the images.
        rows = batch["image"].shape[0]
        temperature = jnp.full(rows, self._temperature(step))
        seeds = jax.random.bits(key, (rows,), jnp.uint32)
        return {"image": batch["image"], "seed": seeds, "temperature": temperature}

    def _temperature(self, step: jax.Array) -> jax.Array:
        first, last = self.config.tokenizer.temperature
        return first * (last / first) ** (step / self.num_steps)

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        images = batch["image"] / 255.0
        logits: Any = self.model.apply({"params": params}, images, method="logits")
        noise = jax.vmap(lambda s: jax.random.gumbel(jax.random.key(s), logits.shape[1:]))
        soft = (logits + noise(batch["seed"])) / batch["temperature"][:, None, None, None]
        statistics = self._apply(params, jax.nn.softmax(soft), "statistics")
        reconstruction = dvae.logit_laplace_loss(images, statistics).mean()
        kl = kl_to_uniform(logits).mean()
        kl_weight = self.config.tokenizer.kl_weight / self._values_per_code
        metrics = {
            "reconstruction": reconstruction,
            "kl": kl,
            "mse": jnp.square(dvae.pixels(statistics) - images).mean(),
            "perplexity": _perplexity(logits),
            "temperature": batch["temperature"].mean(),
        }
        return reconstruction + kl_weight * kl, (metrics, model_state)

    @property
    def _values_per_code(self) -> int:
        """Pixels times channels that one code covers."""
        return self.model.factor**2 * self.model.channels

    def _apply(self, params: Any, x: jax.Array, method: str) -> jax.Array:
        result: Any = self.model.apply({"params": params}, x, method=method)
        return result

    # Evaluation and reports.

    def evaluate(
        self, state: Any, mesh: Mesh, on_batch: OnBatch = ignore_batch
    ) -> dict[str, float]:
        """Reconstruction from the most likely codes of held-out images, and usage of the codes."""
        if self._eval_step is None:
            self._eval_step = compile_eval_step(self._rows, mesh)
        batches = self.data.eval_batches(
            self.data.eval_source, limit=self.config.eval_images, on_batch=on_batch
        )
        counts, sums = np.zeros(self.model.vocab_size), {}
        for rows in stream(self._eval_step, state.params, batches, mesh):
            valid = rows.pop("valid")
            counts += np.bincount(rows.pop("codes")[valid].ravel(), minlength=len(counts))
            for name, values in rows.items():
                sums[name] = sums.get(name, 0.0) + float(values[valid].sum(dtype=np.float64))
        images = counts.sum() / math.prod(self.model.grid)
        shares = counts[counts > 0] / counts.sum()
        return {name: total / images for name, total in sums.items()} | {
            "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
            "used_codes": len(shares) / len(counts),
            "count": images,
        }

    def _rows(self, params: Any, batch: Batch) -> Batch:
        """Codes and losses of each image of a batch."""
        images = batch["image"] / 255.0
        codes = self._apply(params, images, "codes")
        statistics = self._apply(params, jax.nn.one_hot(codes, self.model.vocab_size), "statistics")
        loss = dvae.logit_laplace_loss(images, statistics)
        mean_color = images.mean(axis=(1, 2), keepdims=True)
        axes = (1, 2, 3)
        return {
            "codes": codes,
            "loss": loss.mean(axis=axes),
            "mse": jnp.square(dvae.pixels(statistics) - images).mean(axis=axes),
            "baseline_mse": jnp.square(mean_color - images).mean(axis=axes),
            "valid": batch["valid"],
        }

    def figure(self, state: Any, mesh: Mesh) -> np.ndarray:
        """A few held-out images and their reconstructions from the most likely codes."""
        batch, reconstruction = self._figure.compute(state.params, mesh)
        original = batch["image"] / np.float32(255)
        columns = [("original", original), ("reconstruction", reconstruction)]
        return figures.image_grid([(t, figures.to_display(x, original)) for t, x in columns])

    def _reconstruct(self, params: Any, batch: Batch) -> jax.Array:
        codes = self._apply(params, batch["image"] / 255.0, "codes")
        return self._apply(params, codes, "decode_codes")

    def metadata(self, step: int) -> dict[str, Any]:
        return {**super().metadata(step), "model": {"kind": "dvae", **self.fields}}

    def summary(self) -> dict[str, Any]:
        """Model, parameters, codes, data, length and learning rate."""
        params, _ = jax.eval_shape(self.init_variables)
        factor, (rows, columns) = self.model.factor, self.model.grid
        return {
            "model": f"dvae {self.fields}",
            "parameters": run_info.parameter_counts(params, self.config.optim.weight_decay),
            "codes": f"{rows} x {columns} of {self.model.vocab_size}, each for {factor} x {factor} "
            "pixels",
            **super().summary(),
        }


def kl_to_uniform(logits: jax.Array) -> jax.Array:
    """KL divergence of softmax(logits) [..., V] from the uniform distribution, in nats: [...]."""
    logs = jax.nn.log_softmax(logits)
    return (jnp.exp(logs) * logs).sum(axis=-1) + math.log(logits.shape[-1])


def _perplexity(logits: jax.Array) -> jax.Array:
    """Perplexity of the most likely codes of `logits` [B, h, w, V]: effective number of codes."""
    counts = jnp.zeros(logits.shape[-1]).at[logits.argmax(axis=-1)].add(1.0)
    shares = counts / counts.sum()
    return jnp.exp(-(shares * jnp.log(jnp.maximum(shares, 1e-30))).sum())


def _fields(config: Any) -> dict[str, Any]:
    """Constructor arguments of the model in a configuration.

    Raises:
      UsageError: the configuration does not describe a tokenizer.
    """
    sizes = config.tokenizer
    size, patch = (
        pair(config.model[k], f"--config.model.{k}") for k in ("image_size", "patch_size")
    )
    factor = 2 ** (sizes.groups - 1)
    require(
        patch == (factor, factor),
        f"--config.model.patch_size={patch} of a tokenizer is the square that one code covers: "
        f"--config.tokenizer.groups={sizes.groups} needs {factor}",
    )
    require(
        not any(s % factor for s in size),
        f"--config.model.image_size={size} is not divisible by the {factor} pixels that one code "
        f"of --config.tokenizer.groups={sizes.groups} covers",
    )
    require(
        sizes.hidden_dim % 4 == 0,
        f"--config.tokenizer.hidden_dim={sizes.hidden_dim} must be a multiple of 4",
    )
    require(
        config.data.dtype == "uint8",
        f"--config.data.dtype={config.data.dtype}: a tokenizer takes pixels in [0, 1], uint8",
    )
    require(not config.init_from, _FROM_SCRATCH)
    return {
        "image_size": size,
        "channels": config.model.channels,
        "vocab_size": sizes.vocab_size,
        "hidden_dim": sizes.hidden_dim,
        "groups": sizes.groups,
        "blocks_per_group": sizes.blocks_per_group,
        "init_dim": dvae.DiscreteVAE.init_dim,
    }
