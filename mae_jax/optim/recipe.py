"""Turns `config.optim` and the length of a run into an optimiser."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from mae_jax.errors import UsageError
from mae_jax.optim.optimizers import adamw, lars
from mae_jax.optim.schedules import Schedule, absolute_lr, warmup_cosine

log = logging.getLogger(__name__)

OPTIMIZERS = ("adamw", "lars")
MU_DTYPES = ("float32", "bfloat16")


class Recipe(NamedTuple):
    """An optimiser and what there is to say about it."""

    tx: optax.GradientTransformation
    schedule: Schedule
    lr: float
    warmup_epochs: float


def make_recipe(
    optim: Any,
    *,
    batch_size: int,
    epochs: float,
    steps_per_epoch: float,
    exempt: tuple[str, ...] = (),
    scale: Callable[[str], float] | None = None,
) -> Recipe:
    """The optimiser of `config.optim` with warm-up and cosine, for a run of so many epochs.

    A warm-up as long as the whole run, which a short trial of a long recipe has, is cut to a tenth
    of the run, with a warning.

    Args:
      optim: `config.optim`.
      batch_size: global batch.
      epochs: length of the run.
      steps_per_epoch: may be fractional.
      exempt, scale: see `adamw`.

    Raises:
      UsageError: no such optimiser.
    """
    if optim.mu_dtype not in MU_DTYPES:
        raise UsageError(f"--config.optim.mu_dtype={optim.mu_dtype} is not one of {MU_DTYPES}")
    lr = absolute_lr(optim.base_lr, batch_size)
    warmup = optim.warmup_epochs
    if warmup >= epochs:
        warmup = 0.1 * epochs
        log.warning(
            "optim.warmup_epochs=%g is not shorter than the run (%.3g epochs): warming up for a "
            "tenth of the run instead",
            optim.warmup_epochs,
            epochs,
        )
    schedule = warmup_cosine(
        lr,
        warmup_epochs=warmup,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        min_lr=optim.min_lr,
    )
    if optim.name == "adamw":
        tx = adamw(
            schedule,
            b1=optim.b1,
            b2=optim.b2,
            mu_dtype=optim.mu_dtype,
            weight_decay=optim.weight_decay,
            grad_clip=optim.grad_clip,
            exempt=exempt,
            scale=scale,
        )
    elif optim.name == "lars":
        if scale is not None:
            raise UsageError("--config.optim.layer_decay must be 1 with --config.optim.name=lars")
        tx = lars(
            schedule,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            grad_clip=optim.grad_clip,
        )
    else:
        raise UsageError(f"--config.optim.name={optim.name} is not one of {list(OPTIMIZERS)}")
    return Recipe(tx, schedule, lr, warmup)
