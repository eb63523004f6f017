"""Makes a recipe fit a small data set.

What is changed depends on the configuration and the number of images only (`grad_accum`, which does
not change the update, on the devices too), so every process and every restart arrives at the same
values. They are written into the configuration itself, so
config.json, checkpoints and comparisons of configurations hold what the run really uses.
"""

import logging
import math
from typing import Any

from mae_jax.config.diff import flatten
from mae_jax.optim.schedules import num_steps
from mae_jax.runtime.errors import require
from mae_jax.tasks import presets

log = logging.getLogger(__name__)


def adapt(config: Any, *, num_images: int, holdout: int, num_devices: int) -> None:
    """Lowers, in place, what a data set is too small for, and logs all of it in one line.

    Args:
      config: the whole configuration.
      num_images: to train on.
      holdout: how many training images are held out; 0 if there is a split for evaluation.
      num_devices: that share a batch.

    Raises:
      UsageError: no batch fits both the images and the devices, or images cannot be mixed in pairs.
    """
    asked = flatten(config)
    if holdout:
        config.data.holdout = holdout
    presets.fill(config, num_images)
    if "optim" in config:  # it trains
        _adapt_batch(config, num_images, num_devices)
        _adapt_groups(config)
        _adapt_warmup(config, num_images)
        presets.fill_intervals(config, num_images)
    changed = [f"{k} {asked[k]} -> {v}" for k, v in flatten(config).items() if v != asked[k]]
    if changed:
        log.warning("adapted to %d training images: %s", num_images, ", ".join(changed))


def mixes(config: Any) -> bool:
    """Whether a classifier's images are mixed with each other."""
    return "mix" in config and (config.mix.mixup > 0 or config.mix.cutmix > 0)


def _adapt_batch(config: Any, num_images: int, num_devices: int) -> None:
    """A batch is no larger than an epoch: the largest divisor that is not, for the sake of groups.

    It does not depend on the devices, so that a run can continue on others.
    """
    asked = config.batch_size
    if asked <= num_images:
        return
    batch = _largest_divisor(asked, num_images, even=mixes(config))
    advice = (
        f"set --config.batch_size to a multiple of {num_devices} that is at most {num_images}"
        if num_devices <= num_images
        else "use fewer devices"
    )
    require(
        batch > 0 and batch % num_devices == 0,
        f"--config.batch_size={asked} is more than the {num_images} training images, and no "
        f"divisor of it suits both them and the number of devices ({num_devices}): {advice}",
    )
    config.batch_size = batch
    config.grad_accum = math.gcd(config.grad_accum, batch // num_devices)


def _adapt_groups(config: Any) -> None:
    """Groups of rows divide the batch, or the part of it that they are taken from."""
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
    """A warm-up that is not shorter than the run becomes a tenth of it."""
    steps = config.steps or num_steps(config.epochs, num_images, config.batch_size)
    epochs = steps * config.batch_size / num_images
    if steps > 0 and config.optim.warmup_epochs >= epochs:
        config.optim.warmup_epochs = float(f"{0.1 * epochs:.2g}")


def _largest_divisor(number: int, most: int, *, even: bool = False) -> int:
    """The largest divisor of `number` that is at most `most`; 0 if there is none."""
    step = 2 if even else 1
    candidates = range(min(number, most) // step * step, 0, -step)
    return next((n for n in candidates if number % n == 0), 0)
