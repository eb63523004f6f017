"""When a run saves its state, and what it does when that fails."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from mae_jax.checkpoint.checkpointer import Checkpointer
from mae_jax.checkpoint.writer import SaveFailed
from mae_jax.distributed import collectives
from mae_jax.runtime.errors import RunError
from mae_jax.runtime.preemption import StopRequest
from mae_jax.train.state import TrainState

log = logging.getLogger(__name__)

# Between a failed save and the next try: at first, at most, and at most when the run is to stop.
FIRST_PAUSE, LONGEST_PAUSE, STOPPING_PAUSE = 10.0, 600.0, 30.0


class SavePolicy:
    """The checkpoints of a run.

    Args:
      saver: writes them.
      options: `config.checkpoint`.
      check_every: steps between two questions to the other processes.
      stop: whether the run is to stop.
    """

    def __init__(self, saver: Checkpointer, options: Any, *, check_every: int, stop: StopRequest):
        self._saver, self._options, self._check_every = saver, options, check_every
        self._stop = stop
        self._failures = 0  # since the newest checkpoint, `_newest`
        self._newest: int | None = None
        self._again_at: float | None = None  # when to save again, whatever else is due
        self._saved_at = time.monotonic()

    def should_save(self, step: int) -> bool:
        """Whether to save after this step; asked at every step, on every process.

        Raises:
          RunError: too many saves in a row have failed.
        """
        options, checking = self._options, step % self._check_every == 0
        may_ask = checking or jax.process_count() == 1
        if may_ask and (failure := self._saver.pop_error()):
            self._note(failure)
        if self._again_at is not None:
            return may_ask and self._past(self._again_at)
        if any(n and step % n == 0 for n in (options.every_steps, options.keep_every)):
            return True
        if not options.every_minutes or not checking:
            return False
        return self._past(self._saved_at + 60 * options.every_minutes)

    def defer(self) -> None:
        """Saves as soon as possible instead of now."""
        self._again_at = -math.inf

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts a checkpoint. A failure shows at a later `should_save`, or at `save_final`."""
        self._again_at = None
        self._saver.save(state, metadata)
        self._saved_at = time.monotonic()

    def save_final(self, save: Callable[[], None]) -> None:
        """Waits for the checkpoint under way; as long as that fails, calls `save` again.

        Raises:
          RunError: too many saves in a row have failed.
        """
        self._failures = 0  # the last save gets all tries
        while True:
            try:
                return self._saver.wait()
            except SaveFailed as failure:
                self._stop.pause(self._note(failure))
            save()

    def newest(self) -> int | None:
        """Newest checkpoint, after the one under way is complete."""
        try:
            self._saver.wait()
        except SaveFailed as failure:
            log.warning("%s", failure)
        return self._latest()

    def _latest(self) -> int | None:
        """Newest checkpoint; the one known before, where the disk cannot even be listed."""
        with contextlib.suppress(OSError):
            return self._saver.latest_step()
        return self._newest

    def _past(self, moment: float) -> bool:
        """Whether it is past a moment, by the clock of process 0."""
        return bool(collectives.all_gather(time.monotonic() >= moment)[0])

    def _note(self, failure: SaveFailed) -> float:
        """Plans another save, unless this was one failure too many; in how many seconds."""
        newest, limit = self._latest(), self._options.max_failures
        self._failures = self._failures + 1 if newest == self._newest else 1
        self._newest = newest
        if self._failures >= limit:
            good = "nothing was saved" if newest is None else f"checkpoint {newest} is there"
            raise RunError(
                f"{self._failures} saves in a row failed ({failure}); {good}. Mend the cause and "
                f"run the same command again (--config.checkpoint.max_failures={limit})"
            )
        longest = STOPPING_PAUSE if self._stop.asked else LONGEST_PAUSE
        pause = min(FIRST_PAUSE * 2 ** (self._failures - 1), longest)
        log.warning(
            "%s; next try in %.0f s (failure %d of %d)", failure, pause, self._failures, limit
        )
        self._again_at = time.monotonic() + pause
        return pause
