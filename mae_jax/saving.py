"""When a run saves its state, and what it does when that fails."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from mae_jax import together
from mae_jax.checkpoint import Checkpointer, SaveFailed
from mae_jax.errors import RunError
from mae_jax.state import TrainState

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # between tries when nothing else is left to do


class Saving:
    """The checkpoints of a run.

    Args:
      saver: writes them.
      options: `config.checkpoint`.
      check_every: steps between two questions to the other processes.
    """

    def __init__(self, saver: Checkpointer, options: Any, *, check_every: int):
        self._saver, self._options, self._check_every = saver, options, check_every
        self._failures = 0  # since the newest checkpoint, `_newest`
        self._newest: int | None = None
        self._again = False
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step; asked at every step, on every process.

        Raises:
          RunError: too many saves in a row have failed.
        """
        options, checking = self._options, step % self._check_every == 0
        if checking or jax.process_count() == 1:
            failure = self._saver.failure()
            if failure:
                self._note(failure)
        if self._again:
            return True
        if any(n and step % n == 0 for n in (options.every_steps, options.keep_every)):
            return True
        if not options.every_minutes or not checking:
            return False
        late = time.monotonic() - self._saved_at > 60 * options.every_minutes
        return bool(together.everywhere(late)[0])  # the clock of process 0 counts

    def postpone(self) -> None:
        """Saves at the next step instead of now."""
        self._again = True

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts a checkpoint. A failure shows at a later `due`, or at `finish`."""
        self._again = False
        self._saver.save(state, metadata)
        self._saved_at = time.monotonic()

    def finish(self, save: Callable[[], None]) -> None:
        """Waits for the checkpoint under way; as long as that fails, calls `save` again.

        Raises:
          RunError: too many saves in a row have failed.
        """
        while True:
            try:
                return self._saver.wait()
            except SaveFailed as failure:
                self._note(failure)
            time.sleep(RETRY_SECONDS)
            save()

    def newest(self) -> int | None:
        """Newest checkpoint, after the one under way is complete."""
        try:
            self._saver.wait()
        except SaveFailed as failure:
            log.warning("%s", failure)
        return self._saver.latest_step()

    def _note(self, failure: SaveFailed) -> None:
        """Plans another save, unless this was one failure too many."""
        newest, limit = self._saver.latest_step(), self._options.max_failures
        self._failures = self._failures + 1 if newest == self._newest else 1
        self._newest = newest
        if self._failures >= limit:
            good = "nothing was saved" if newest is None else f"checkpoint {newest} is there"
            raise RunError(
                f"{self._failures} saves in a row failed ({failure}); {good}. Mend the cause and "
                f"run the same command again (--config.checkpoint.max_failures={limit})"
            )
        log.warning("%s; it is tried again (failure %d of %d)", failure, self._failures, limit)
        self._again = True
