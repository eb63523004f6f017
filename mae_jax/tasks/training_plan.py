"""The length and the optimizer of a run."""

import logging
from collections.abc import Callable
from typing import Any

from mae_jax.config.rules import LARGEST
from mae_jax.optim.build import make_optimizer
from mae_jax.optim.param_groups import Decays, decays
from mae_jax.optim.schedules import num_steps
from mae_jax.runtime.errors import require

log = logging.getLogger(__name__)

FEW_STEPS = 100


class TrainingPlan:
    """The length of a run and its optimizer, from a configuration.

    Args:
      config: the whole configuration, adapted to the data.
      num_images: number of training images.
      decays, scale: see `optim.optimizers.adamw`.

    Attributes:
      num_steps: from `steps` or `epochs`.
      steps_per_epoch: may be fractional.
      tx, schedule: optax transformation and learning-rate schedule of `config.optim`.

    Raises:
      UsageError: the run has no steps or too many, or the optimizer's options are inconsistent.
    """

    def __init__(
        self,
        config: Any,
        num_images: int,
        *,
        decays: Decays = decays,
        scale: Callable[[str], float] | None = None,
    ):
        self._base_lr = config.optim.base_lr
        self.num_steps = _num_steps(config, num_images)
        self.steps_per_epoch = num_images / config.batch_size
        self._optimizer = make_optimizer(
            config.optim,
            batch_size=config.batch_size,
            epochs=self.num_steps / self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            decays=decays,
            scale=scale,
        )
        self.tx, self.schedule = self._optimizer.tx, self._optimizer.schedule

    def summary(self) -> dict[str, Any]:
        """Lines logged at the start of a run, by name."""
        optimizer, per_epoch = self._optimizer, self.steps_per_epoch
        return {
            "steps": f"{self.num_steps:,} = {self.num_steps / per_epoch:.4g} epochs of "
            f"{per_epoch:.6g} steps",
            "learning rate": f"{optimizer.lr:.4g} (base {self._base_lr} per 256 images), "
            f"warm-up {optimizer.warmup_epochs * per_epoch:.0f} steps",
        }


def _num_steps(config: Any, num_images: int) -> int:
    require(
        config.steps > 0 or config.epochs > 0,
        "the run has no length: set --config.epochs or --config.steps",
    )
    by_epochs = num_steps(config.epochs, num_images, config.batch_size)
    steps = config.steps or by_epochs
    require(
        0 < steps <= LARGEST,
        f"--config.epochs={config.epochs} of {num_images} images are {steps} batches of "
        f"{config.batch_size}, but a run has 1 to {LARGEST} steps: change --config.epochs",
    )
    if steps < FEW_STEPS:
        log.warning("only %d updates: too few to learn anything", steps)
    return steps
