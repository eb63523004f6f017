"""Builds the optimizer of `config.optim` for a run of a given length."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from mae_jax.optim.optimizers import adamw, lars
from mae_jax.optim.param_groups import Decays, decays
from mae_jax.optim.schedules import SCHEDULES, Schedule, absolute_lr
from mae_jax.runtime.errors import require


class Optimizer(NamedTuple):
    """An optimizer and its schedule.

    Attributes:
      tx: the optax transformation.
      schedule: learning rate by step.
      lr: peak learning rate.
      warmup_epochs: length of the warm-up.
    """

    tx: optax.GradientTransformation
    schedule: Schedule
    lr: float
    warmup_epochs: float


def make_optimizer(
    optim: Any,
    *,
    batch_size: int,
    epochs: float,
    steps_per_epoch: float,
    decays: Decays = decays,
    scale: Callable[[str], float] | None = None,
) -> Optimizer:
    """Builds an optimizer with linear warm-up and the decay that `optim.schedule` names.

    Args:
      optim: `config.optim`.
      batch_size: global batch size, which scales the learning rate.
      epochs: length of the run.
      steps_per_epoch: may be fractional.
      decays, scale: see `adamw`.

    Raises:
      UsageError: the warm-up is too long for the run, the minimum rate is above the peak, or the
        optimizer does not support an option.
    """
    lr = absolute_lr(optim.base_lr, batch_size)
    warmup = optim.warmup_epochs
    require(
        warmup < epochs,
        f"--config.optim.warmup_epochs={warmup:g} is not shorter than the run, which has "
        f"{epochs:.4g} epochs: set --config.optim.warmup_epochs={0.1 * epochs:.2g}, or lengthen it",
    )
    require(
        optim.min_lr <= lr,
        f"--config.optim.min_lr={optim.min_lr:g} is above the learning rate {lr:.4g} "
        f"(--config.optim.base_lr={optim.base_lr:g} x batch {batch_size} / 256)",
    )
    schedule = SCHEDULES[optim.schedule](
        lr,
        warmup_epochs=warmup,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        min_lr=optim.min_lr,
        warmup_start=optim.warmup_start,
        milestones=tuple(optim.milestones),
    )
    if optim.name == "adamw":
        tx = adamw(
            schedule,
            b1=optim.b1,
            b2=optim.b2,
            mu_dtype=optim.mu_dtype,
            weight_decay=optim.weight_decay,
            grad_clip=optim.grad_clip,
            decays=decays,
            scale=scale,
        )
    else:
        require(scale is None, "--config.optim.layer_decay must be 1 with --config.optim.name=lars")
        tx = lars(
            schedule,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            grad_clip=optim.grad_clip,
        )
    return Optimizer(tx, schedule, lr, warmup)
