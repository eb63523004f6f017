"""Adapts a recipe to a small data set.

The changes depend only on the configuration and the number of images, so every process and every
restart computes the same values. (`grad_accum`, which does not affect the update, also depends on
the devices.) The configuration is changed in place, so config.json, checkpoints and comparisons of
configurations contain the values that the run uses.
"""

import logging
import math
from typing import Any

from mae_jax.config.diff import flatten
from mae_jax.optim.schedules import num_steps
from mae_jax.runtime.errors import require
from mae_jax.tasks import batch_size, presets

log = logging.getLogger(__name__)


def adapt(
    config: Any,
    *,
    num_images: int,
    holdout: int,
    num_devices: int,
    make_task: batch_size.MakeTask,
) -> None:
    """Fits values to the data, in place, and logs them in one line.

    Args:
      config: the whole configuration.
      num_images: number of training images.
      holdout: number of training images to hold out; 0 if there is an evaluation split.
      num_devices: number of devices that share a batch.
      make_task: the task of a configuration and a workdir, for `batch_size.choose`.

    Raises:
      UsageError: no batch size suits both images and devices, or images cannot be mixed in pairs.
    """
    before = flatten(config)
    if holdout:
        config.data.holdout = holdout
    presets.fill(config, num_images)
    if config.batch_size == batch_size.BY_MEMORY:
        config.batch_size = batch_size.choose(make_task, config, num_images)
    if "optim" in config:  # it trains
        _adapt_batch(config, num_images, num_devices)
        _adapt_groups(config)
        _adapt_warmup(config, num_images)
        presets.fill_intervals(config, num_images)
    changed = [f"{k} {before[k]} -> {v}" for k, v in flatten(config).items() if v != before[k]]
    if changed:
        log.warning("adapted to %d training images: %s", num_images, ", ".join(changed))


def mixes(config: Any) -> bool:
    """Whether a classifier is trained with mixup or CutMix."""
    return "mix" in config and (config.mix.mixup > 0 or config.mix.cutmix > 0)


def _adapt_batch(config: Any, num_images: int, num_devices: int) -> None:
    """Limits the batch to an epoch.

    Uses the largest divisor of the configured size that fits, so that groups still divide the
    batch. It does not depend on the devices, so a run can continue on others.
    """
    configured = config.batch_size
    if configured <= num_images:
        return
    batch = _largest_divisor(configured, num_images, even=mixes(config))
    advice = (
        f"set --config.batch_size to a multiple of {num_devices} that is at most {num_images}"
        if num_devices <= num_images
        else "use fewer devices"
    )
    require(
        batch > 0 and batch % num_devices == 0,
        f"--config.batch_size={configured} is more than the {num_images} training images, and no "
        f"divisor of it suits both them and the number of devices ({num_devices}): {advice}",
    )
    config.batch_size = batch
    config.grad_accum = math.gcd(config.grad_accum, batch // num_devices)


def _adapt_groups(config: Any) -> None:
    """Makes groups of rows divide the batch or micro-batch that they are taken from."""
    if mixes(config):
        group = _largest_divisor(config.batch_size, config.mix.group, even=True)
        require(
            group > 0,
            f"--config.mix.group={config.mix.group} with --config.batch_size={config.batch_size}: "
            "images are mixed in pairs, so both must be even (or set --config.mix.mixup=0 and "
            "--config.mix.cutmix=0)",
        )
        config.mix.group = group
    if "head" in config and config.head.batch_norm and config.head.batch_norm_group:
        part = config.batch_size // config.grad_accum
        config.head.batch_norm_group = _largest_divisor(part, config.head.batch_norm_group)


def _adapt_warmup(config: Any, num_images: int) -> None:
    """Shortens a warm-up that is as long as the run to a tenth of the run."""
    steps = config.steps or num_steps(config.epochs, num_images, config.batch_size)
    epochs = steps * config.batch_size / num_images
    if steps > 0 and config.optim.warmup_epochs >= epochs:
        config.optim.warmup_epochs = float(f"{0.1 * epochs:.2g}")


def _largest_divisor(number: int, limit: int, *, even: bool = False) -> int:
    """The largest divisor of `number` that is at most `limit`; 0 if there is none."""
    step = 2 if even else 1
    candidates = range(min(number, limit) // step * step, 0, -step)
    return next((n for n in candidates if number % n == 0), 0)
