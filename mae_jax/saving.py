"""When a run saves its state, and what it does when that fails."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from mae_jax import distributed
from mae_jax.checkpoint import Checkpointer
from mae_jax.errors import RunError
from mae_jax.state import TrainState

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # between tries when nothing else is left to do


class Saving:
    """The checkpoints of a run.

    Args:
      saver: writes them.
      options: `config.checkpoint`.
      check_every: steps between two questions to the other processes; a collective each.
    """

    def __init__(self, saver: Checkpointer, options: Any, *, check_every: int):
        self._saver, self._options, self._check_every = saver, options, check_every
        self._error: Exception | None = None
        self._failures = 0  # since the newest checkpoint, `_good`
        self._good: int | None = None
        self._again = False
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step; asked at every step, on every process.

        Raises:
          RunError: too many saves in a row have failed.
        """
        options = self._options
        checking = step % self._check_every == 0
        if checking or jax.process_count() == 1:
            self._look_for_failure()
        if self._again:
            return True
        if any(n and step % n == 0 for n in (options.every_steps, options.keep_every)):
            return True
        if not options.every_minutes or not checking:
            return False
        return distributed.agree(time.monotonic() - self._saved_at > 60 * options.every_minutes)

    def postpone(self) -> None:
        """Saves at the next step instead of now."""
        self._again = True

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts a checkpoint. An error shows at the next `due` or `finish`."""
        self._again = False
        try:
            self._saver.save(state, metadata)
        except OSError as error:
            self._error = error
        self._saved_at = time.monotonic()

    def finish(self, save: Callable[[], None]) -> None:
        """Waits for the checkpoint under way; as long as that fails, calls `save` again.

        Raises:
          RunError: too many saves in a row have failed.
        """
        self._saver.wait()
        self._look_for_failure()
        while self._again:
            time.sleep(RETRY_SECONDS)
            save()
            self._saver.wait()
            self._look_for_failure()

    def _look_for_failure(self) -> None:
        """Takes note of a save that failed, on whichever process, and plans another one."""
        error = self._error or self._saver.failure()
        self._error = None
        if not distributed.any_process(error is not None):
            return
        newest = self._saver.latest_step()
        self._failures = self._failures + 1 if newest == self._good else 1
        self._good = newest
        reason = " ".join(str(error or "on another process").split())[:500]
        if distributed.agree(self._failures >= self._options.max_failures):
            good = "no checkpoint" if newest is None else f"checkpoint {newest}, which is sound"
            raise RunError(
                f"{self._failures} saves in a row failed ({reason}); there is {good}. Mend the "
                "cause and run the same command again; --config.checkpoint.max_failures="
                f"{self._options.max_failures} sets the limit"
            )
        log.warning("saving failed and is tried again: %s", reason)
        self._again = True
