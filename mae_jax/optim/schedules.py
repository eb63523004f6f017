"""Learning-rate schedules by step, computed from the fractional epoch."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[Any], jax.Array]  # from the number of completed steps, an int or an array


def num_steps(epochs: float, num_images: int, batch_size: int) -> int:
    """Number of whole batches in `epochs`.

    Exact for the decimal value of `epochs`: as floats, 50 * (57 / 25) is just under 114 and 0.3
    just under three tenths.
    """
    return int(Fraction(str(epochs)) * num_images / batch_size)


def absolute_lr(base_lr: float, batch_size: int) -> float:
    """Linear scaling rule: the base rate for 256 images, scaled to the batch (paper table 8)."""
    return base_lr * batch_size / 256


def warmup_cosine(
    lr: float,
    *,
    warmup_epochs: float,
    epochs: float,
    steps_per_epoch: float,
    min_lr: float = 0.0,
    warmup_start: float = 0.0,
    **_: Any,
) -> Schedule:
    """Linear warm-up, then a half-cosine decay to `min_lr` (official `util/lr_sched.py`).

    Args:
      lr: peak learning rate.
      warmup_epochs: length of the warm-up.
      epochs: length of the whole run.
      steps_per_epoch: optimizer steps in an epoch; may be fractional.
      min_lr: rate at the end.
      warmup_start: first rate, relative to `lr`; 0 in the official code.

    Returns:
      Function from the number of completed steps to the float32 rate of the next step.
    """

    def schedule(step: Any) -> jax.Array:
        epoch = jnp.asarray(step, jnp.float32) / np.float32(steps_per_epoch)
        warm = lr * _warmup(epoch, warmup_epochs, warmup_start)
        progress = jnp.clip((epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9), 0.0, 1.0)
        cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(epoch < warmup_epochs, warm, cosine)

    return schedule


def warmup_steps(
    lr: float,
    *,
    warmup_epochs: float,
    epochs: float,
    steps_per_epoch: float,
    milestones: tuple[float, ...],
    warmup_start: float = 0.0,
    gamma: float = 0.1,
    **_: Any,
) -> Schedule:
    """Linear warm-up, then `lr` times `gamma` for each milestone passed (detectron2).

    Arguments and result as for `warmup_cosine`, and:

    Args:
      milestones: fractions of the run.
      gamma: factor at each.
    """

    # In whole steps: a fractional epoch in float32 cannot tell the steps of a long run apart.
    drop_at = np.array([round(at * epochs * steps_per_epoch) for at in milestones])

    def schedule(step: Any) -> jax.Array:
        epoch = jnp.asarray(step, jnp.float32) / np.float32(steps_per_epoch)
        drops = (jnp.asarray(step) >= drop_at).sum()
        return lr * gamma**drops * _warmup(epoch, warmup_epochs, warmup_start)

    return schedule


def warmup_linear(
    lr: float,
    *,
    warmup_epochs: float,
    epochs: float,
    steps_per_epoch: float,
    min_lr: float = 0.0,
    warmup_start: float = 0.0,
    **_: Any,
) -> Schedule:
    """Linear decay over the whole run, multiplied by a linear warm-up (mmsegmentation's "poly" of
    power 1).

    Arguments and result as for `warmup_cosine`.
    """

    def schedule(step: Any) -> jax.Array:
        epoch = jnp.asarray(step, jnp.float32) / np.float32(steps_per_epoch)
        regular = min_lr + (lr - min_lr) * jnp.clip(1.0 - epoch / epochs, 0.0, 1.0)
        return regular * _warmup(epoch, warmup_epochs, warmup_start)

    return schedule


def _warmup(epoch: jax.Array, warmup_epochs: float, start: float) -> jax.Array:
    """Factor on the rate: linear from `start` to 1."""
    progress = jnp.minimum(epoch / max(warmup_epochs, 1e-9), 1.0)
    return start + (1.0 - start) * progress


# `optim.schedule`
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": warmup_cosine,
    "steps": warmup_steps,
    "linear": warmup_linear,
}
