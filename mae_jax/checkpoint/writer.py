"""One attempt to save a step: written with Orbax in the background, and read back."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from mae_jax.checkpoint import damage, layout, reader
from mae_jax.checkpoint.layout import CheckpointPath
from mae_jax.checkpoint.reader import CorruptCheckpointError
from mae_jax.distributed import collectives
from mae_jax.runtime import disk
from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)

WAIT_SECONDS = 600  # for the slowest process to write its part
ORBAX_ERRORS = 5  # more than one save can leave behind
READ_AGAIN, READ_SECONDS = 3, 10.0  # tries to read a checkpoint back, and the pause after each


class SaveFailed(Exception):
    """A checkpoint that was begun did not come to be; the text is one line."""


class StepWriter:
    """Writes one step. All processes make and begin it together.

    Args:
      found: where to.
      tree: arrays that will be written; only their shapes and dtypes are kept.
      attempt: number of this attempt among all of a run.

    Attributes:
      step: completed steps.
      error: what went wrong, or None.
    """

    def __init__(self, found: CheckpointPath, tree: Any, attempt: int):
        self._found, self.step = found, found.step
        self._tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        self._bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._tree))
        self.error: SaveFailed | None = None
        self._thread: threading.Thread | None = None
        # Orbax's remembers the errors of a failed save: every attempt has its own. So do its
        # barriers: a process that failed has not come to all of them.
        own = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=f"save{attempt}")
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            timeout_secs=WAIT_SECONDS,
            multiprocessing_options=own,
        )

    def begin(self, args: Any, then: Callable[[], None]) -> None:
        """Starts to write; returns when the arrays may be donated.

        Args:
          args: what Orbax is to write.
          then: called on process 0 when the step was read back and is sound.
        """
        self._attempt(lambda: self._write(args))
        if not any(collectives.all_gather(self.error is not None)):
            finish = functools.partial(self._finish, then)
            self._thread = threading.Thread(target=self._attempt, args=(finish,), name="checkpoint")
            self._thread.start()
        else:  # in the background: it may wait for a process that failed
            close = threading.Thread(target=self._attempt, args=(self._close,), daemon=True)
            close.start()

    @property
    def running(self) -> bool:
        """Whether this process is still at it."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Waits for it."""
        if self._thread:
            self._thread.join()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Does a part of the save; what goes wrong first is kept for whoever asks."""
        try:
            work()
        except SaveFailed as failure:
            self.error = self.error or failure
        except Exception as error:
            why = disk.error_line(error, self._found.run, self._bytes)
            self.error = self.error or SaveFailed(f"checkpoint {self.step} is not saved: {why}")
            # No cause: its traceback would keep the arrays in memory until the next try.

    def _write(self, args: Any) -> None:
        """Starts Orbax's part of a save, if process 0 can make folders: all fail, or none."""
        collectives.run_on_primary(lambda: layout.remove_unfinished(self._found.run))
        collectives.run_on_primary(lambda: layout.make_writable(self._found.run))
        collectives.run_on_primary(lambda: disk.require_room(self._found.run, self._bytes))
        self._orbax.save(layout.folder_of(self._found.run, self.step), args=args)

    def _close(self) -> None:
        """Waits until the step is written; ends Orbax's threads, also when it was not."""
        # Orbax stops closing at each error of a failed save: one for the arrays, some for metadata.
        with contextlib.ExitStack() as closing:
            for _ in range(ORBAX_ERRORS):
                closing.callback(self._orbax.close)

    def _finish(self, then: Callable[[], None]) -> None:
        """Waits until the step is written; process 0 then reads it back."""
        self._close()
        if jax.process_index() != 0:
            return
        try:
            self._verify()
        except CorruptCheckpointError as error:
            name = layout.quarantine(self._found.run, self.step)
            raise OSError(f"set aside as {name} after reading back: {error.reason}") from error
        except UsageError as error:
            raise SaveFailed(
                f"checkpoint {self.step} is written but could not be read back; it stays, and so "
                f"do all older ones: {reader.line(error)}"
            ) from error
        then()  # first, since it makes room on the disk
        damage.record_small_files(self._found.folder)

    def _verify(self) -> None:
        """`stored.verify`; a disk or a machine in trouble is asked again."""
        for _ in range(READ_AGAIN):
            try:
                reader.verify(self._found, self._tree)
                return
            except CorruptCheckpointError:
                raise
            except UsageError as error:
                log.warning("%s; it is tried again", error)
                time.sleep(READ_SECONDS)
        reader.verify(self._found, self._tree)
