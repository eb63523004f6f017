"""Tracks the steps that were dispatched but have not finished."""

import collections
import logging
from collections.abc import Callable
from typing import Any

from mae_jax.train.nan_guard import NanGuard
from mae_jax.train.progress import Progress
from mae_jax.train.task import Batch

IN_FLIGHT = 2  # steps the host may run ahead of the device


class StepMonitor:
    """Keeps the host from running far ahead of the device, and checks finished steps.

    Args:
      guard: counts updates that were not finite.
      progress: shows its warnings.
      newest_checkpoint: returns the step of the newest checkpoint, for the guard's error.

    Attributes:
      absent: whether a finished step had no data (see `train.step`).
    """

    def __init__(
        self, guard: NanGuard, progress: Progress, newest_checkpoint: Callable[[], int | None]
    ):
        self.absent = False
        self._guard, self._progress = guard, progress
        self._newest_checkpoint = newest_checkpoint
        self._in_flight: collections.deque[tuple[int, Batch]] = collections.deque()

    @property
    def skipping(self) -> bool:
        """Whether the update of the latest finished step was skipped."""
        return self._guard.streak > 0

    def busy(self) -> bool:
        """Whether the device is still working on a step."""
        return bool(self._in_flight) and not _is_ready(self._in_flight[-1][1])

    def add(self, step: int, metrics: Batch) -> None:
        """Adds a dispatched step, and waits until at most `IN_FLIGHT` are unfinished.

        Raises:
          FloatingPointError: too many updates in a row were not finite.
        """
        self._in_flight.append((step, metrics))
        self._check(leave=IN_FLIGHT)

    def check_finished_steps(self) -> None:
        """Waits for all dispatched steps and checks them; raises as `add` does."""
        self._check(leave=0)

    def _check(self, *, leave: int) -> None:
        while len(self._in_flight) > leave:
            step, metrics = self._in_flight.popleft()
            if float(metrics["absent"]):
                self.absent = True
                continue
            names = ("skipped", "loss", "grad_norm", "lr")
            numbers = {name: float(metrics[name]) for name in names}
            warning = self._guard.check(step, numbers, self._newest_checkpoint)
            if warning:
                self._progress.message(warning, logging.WARNING)


def _is_ready(metrics: dict[str, Any]) -> bool:
    return all(value.is_ready() for value in metrics.values())
