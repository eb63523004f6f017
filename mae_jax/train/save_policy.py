"""Decides when a run saves its state and how it retries failed saves."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from mae_jax.checkpoint.best_tracker import METRICS
from mae_jax.checkpoint.checkpointer import Checkpointer
from mae_jax.checkpoint.writer import SaveFailed
from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError, require
from mae_jax.runtime.preemption import StopRequest
from mae_jax.train.state import TrainState

log = logging.getLogger(__name__)

# Seconds between a failed save and the next attempt: initially, at most, at most when stopping.
FIRST_PAUSE, LONGEST_PAUSE, STOPPING_PAUSE = 10.0, 600.0, 30.0


class SavePolicy:
    """Schedules the checkpoints of a run and retries failed saves.

    Args:
      saver: writes the checkpoints.
      options: `config.checkpoint`.
      check_every: steps between two exchanges with the other processes.
      stop: whether the run was asked to stop.
      first: step at which the run begins; its state is not saved again.
    """

    def __init__(
        self,
        saver: Checkpointer,
        options: Any,
        *,
        check_every: int,
        stop: StopRequest,
        first: int = 0,
    ):
        self._saver, self._options, self._check_every = saver, options, check_every
        self._stop, self._first = stop, first
        self._failures = 0  # in a row, since checkpoint `_newest`
        self._newest: int | None = None
        self._retry_at: float | None = None  # overrides the schedule
        self._saved_at = time.monotonic()
        self._evaluated: tuple[int, dict[str, float]] = (0, {})  # step, metrics
        self._best = 0  # step to save because it is the best so far

    def add_evaluation(self, step: int, metrics: dict[str, dict[str, float]]) -> bool:
        """Takes the metrics of a step, by split; must be called on every process.

        Returns:
          Whether the step will be saved because it is the best so far (`checkpoint.keep_best`).

        Raises:
          UsageError: the metric of `checkpoint.keep_best` does not exist.
        """
        split, _, name = self._options.keep_best.partition("/")
        require(
            split not in metrics or name in metrics[split],
            f"--config.checkpoint.keep_best={split}/{name}: this run has no such metric; {split} "
            f"has {', '.join(metrics.get(split, ()))}",
        )
        flat = {f"{s}/{n}": float(x) for s, values in metrics.items() for n, x in values.items()}
        finite = {key: value for key, value in flat.items() if math.isfinite(value)}
        self._evaluated = (step, finite)
        if step == 0 or split not in metrics:
            return False
        best = self._saver.is_best(step, finite) and step > self._first
        self._best = step if best else self._best
        return best

    def should_save(self, step: int) -> bool:
        """Whether to save after this step; must be called at every step, on every process.

        Raises:
          RunError: too many saves in a row have failed.
        """
        options, checking = self._options, step % self._check_every == 0
        may_communicate = checking or jax.process_count() == 1
        if may_communicate and (error := self._saver.pop_error()):
            self._schedule_retry(error)
        if self._retry_at is not None:
            return may_communicate and self._has_passed(self._retry_at)
        if step == self._best:
            return True
        if any(n and step % n == 0 for n in (options.every_steps, options.keep_every)):
            return True
        if not options.every_minutes or not checking:
            return False
        return self._has_passed(self._saved_at + 60 * options.every_minutes)

    def defer(self) -> None:
        """Defers a save to the next step at which saving is possible."""
        self._retry_at = -math.inf

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts a checkpoint. Errors are handled by a later `should_save` or `save_final`."""
        self._retry_at = None
        step, metrics = self._evaluated
        if step and step == int(state.step):
            metadata = metadata | {METRICS: metrics}
        self._saver.save(state, metadata)
        self._saved_at = time.monotonic()

    def save_final(self, save: Callable[[], None]) -> None:
        """Waits for the running save; calls `save` again as long as it fails.

        Raises:
          RunError: too many saves in a row have failed.
        """
        self._failures = 0  # the final save gets all attempts
        while True:
            try:
                return self._saver.wait()
            except SaveFailed as error:
                self._stop.pause(self._schedule_retry(error))
            save()

    def newest(self) -> int | None:
        """Newest checkpoint, after the running save has ended."""
        try:
            self._saver.wait()
        except SaveFailed as error:
            log.warning("%s", error)
        return self._latest()

    def _latest(self) -> int | None:
        """Newest checkpoint; the last known one if the disk cannot be listed."""
        with contextlib.suppress(OSError):
            return self._saver.latest_step()
        return self._newest

    def _has_passed(self, moment: float) -> bool:
        """Whether a time has passed, by the clock of process 0."""
        return bool(collectives.all_gather(time.monotonic() >= moment)[0])

    def _schedule_retry(self, error: SaveFailed) -> float:
        """Schedules another save and returns the delay in seconds; RunError after too many."""
        newest, limit = self._latest(), self._options.max_failures
        self._failures = self._failures + 1 if newest == self._newest else 1
        self._newest = newest
        if self._failures >= limit:
            saved = "nothing was saved" if newest is None else f"checkpoint {newest} is intact"
            raise RunError(
                f"{self._failures} saves in a row failed ({error}); {saved}. Fix the problem and "
                f"rerun the same command (--config.checkpoint.max_failures={limit})"
            )
        longest = STOPPING_PAUSE if self._stop.requested else LONGEST_PAUSE
        pause = min(FIRST_PAUSE * 2 ** (self._failures - 1), longest)
        log.warning(
            "%s; next attempt in %.0f s (failure %d of %d)", error, pause, self._failures, limit
        )
        self._retry_at = time.monotonic() + pause
        return pause
