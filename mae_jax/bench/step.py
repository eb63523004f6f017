"""Speed of the train step; the command is `mae_jax.tools.bench`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import metrics, sharding
from mae_jax.errors import UsageError
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.ops import masking, targets
from mae_jax.ops.patches import gather, patchify, to_float
from mae_jax.state import TrainState, abstract_state, create_state
from mae_jax.tasks import TASKS
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train_step import make_train_step


def paper_order_predict(
    model: MaskedAutoencoder, patches: jax.Array, masked: masking.Masking
) -> jax.Array:
    """Predictions [B, L, P] in image order for float patches [B, L, P], without any short cut."""
    every = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    x = model.patch_embed(patches) + model.positions(model.embed_dim, every)
    x = gather(x, masked.ids_keep)
    cls = jnp.broadcast_to(model.cls_token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([cls, x], axis=1)
    for block in model.blocks:
        x = block(x)
    x = model.decoder_embed(model.norm(x))
    tokens = (x.shape[0], masked.ids_masked.shape[1], x.shape[2])
    tokens = jnp.broadcast_to(model.mask_token.astype(x.dtype), tokens)
    y = gather(jnp.concatenate([x[:, 1:], tokens], axis=1), masked.ids_restore)
    y = y + model.positions(model.decoder_embed_dim, every)
    x = jnp.concatenate([x[:, :1], y], axis=1)
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_pred(model.decoder_norm(x))[:, 1:]


class PaperOrder(Pretrain):
    """The same task, computed in the order of the paper."""

    def loss(self, params: Any, model_state: Any, batch: dict[str, jax.Array]) -> Any:
        masked = masking.from_noise(batch["noise"], self.config.mask.ratio)
        patches = to_float(patchify(batch["image"], self.model.patch_size), **self.pixels)
        target = targets.pixel_target(patches, normalize=self.config.target.normalize)
        pred: Any = self.model.apply(
            {"params": params}, patches, masked, method=paper_order_predict
        )
        error = jnp.square(pred.astype(jnp.float32) - target).mean(axis=-1)
        loss = (error * masked.mask).sum() / masked.mask.sum()
        return loss, ({"baseline_loss": targets.baseline_loss(target).mean()}, model_state)


class TimedStep:
    """One compiled train step with its own state, timed call by call."""

    def __init__(self, task: Any, config: Any):
        mesh = sharding.make_mesh(**config.mesh)
        abstract = abstract_state(task, mesh)
        self.state: TrainState = create_state(task, abstract)
        step = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
        shape = (config.batch_size, *task.model.image_size, task.model.channels)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        labels = np.zeros(config.batch_size, np.int32)
        self.batch = sharding.to_device(mesh, {"image": images, "label": labels})
        began = time.perf_counter()
        self.step: Callable[..., Any] = step.lower(self.state, self.batch).compile()
        self.compile_s = time.perf_counter() - began
        self.times: list[float] = []

    def __call__(self) -> None:
        began = time.perf_counter()
        self.state, values = self.step(self.state, self.batch)
        jax.block_until_ready(values)
        self.times.append(time.perf_counter() - began)


def bench_step(config: Any, repeats: int, against: str) -> dict[str, Any]:
    """Times the train step on a batch that lies on the devices.

    Args:
      config: a configuration of any task that trains; its data are not read.
      repeats: timed calls.
      against: "plain" alternates with the paper's order of steps; "" does not.
    """
    config.data.source = "shapes"  # nothing is read, but a task knows the size of its data
    if "num_classes" in config.model:
        config.model.num_classes = 0
    if against == "plain" and config.task != "pretrain":
        raise UsageError("--against=plain is another order of pre-training's steps")
    task = TASKS[config.task](config, "")
    steps = {"ours": TimedStep(task, config)}
    if against == "plain":
        steps["plain"] = TimedStep(PaperOrder(config, ""), config)
    for _ in range(repeats + 1):
        for step in steps.values():
            step()
    result: dict[str, Any] = {}
    for name, step in steps.items():
        times = step.times[1:]  # the first call warms up
        median = statistics.median(times)
        rate = config.batch_size / median
        result[name] = {
            "compile_s": round(step.compile_s, 2),
            "step_ms": round(1000 * median, 2),
            "fastest_ms": round(1000 * min(times), 2),
            "slowest_ms": round(1000 * max(times), 2),
            "images_per_s": round(rate, 2),
            "images_per_s_per_device": round(rate / jax.device_count(), 2),
        }
        peak = metrics.peak_flops(jax.devices()[0])
        if peak is not None:
            mfu = rate * task.flops_per_image / (jax.device_count() * peak)
            result[name]["mfu"] = round(mfu, 4)
    if against == "plain":
        pairs = zip(steps["ours"].times[1:], steps[against].times[1:], strict=True)
        result["speed_up"] = round(statistics.median(b / a for a, b in pairs), 3)
    return result
