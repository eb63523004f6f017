"""One attempt to save a step: Orbax writes it in the background, then it is read back."""

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
ORBAX_ERRORS = 5  # more errors than a single save can leave behind
READ_RETRIES, RETRY_SECONDS = 3, 10.0  # for reading a checkpoint back


# Orbax writes an array in parallel from all of its replicas. For this it compiles a slice for every
# shape and device, which is not worth it below this number of bytes. There is no public option.
_ARRAYS = ocp.type_handlers.get_type_handler(jax.Array)
_ARRAYS._min_slice_bytes_for_replica_parallel = 2**20  # pyright: ignore[reportAttributeAccessIssue]


class SaveFailed(Exception):
    """A checkpoint could not be saved; the message is one line."""


class StepWriter:
    """Writes one step. All processes create and start it together.

    Args:
      path: destination.
      tree: arrays to write; only their shapes and dtypes are kept.
      attempt: number of this attempt, counted over all saves of the run.

    Attributes:
      step: completed steps.
      error: the first error, or None.
    """

    def __init__(self, path: CheckpointPath, tree: Any, attempt: int):
        self._path, self.step = path, path.step
        self._tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        self._bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._tree))
        self.error: SaveFailed | None = None
        self._thread: threading.Thread | None = None
        # An AsyncCheckpointer remembers the errors of a failed save, so every attempt gets a new
        # one. It also needs new barriers: a process that failed did not reach all of the old ones.
        barriers = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=f"save{attempt}")
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            timeout_secs=WAIT_SECONDS,
            multiprocessing_options=barriers,
        )

    def start(self, args: Any, then: Callable[[], None]) -> None:
        """Starts writing; returns when the arrays may be donated.

        Args:
          args: Orbax's save arguments.
          then: called on process 0 after the step was read back and is intact.
        """
        self._attempt(lambda: self._write(args))
        if not any(collectives.all_gather(self.error is not None)):
            finish = functools.partial(self._finish, then)
            self._thread = threading.Thread(target=self._attempt, args=(finish,), name="checkpoint")
            self._thread.start()
        else:  # in the background: closing may wait for a process that failed
            close = threading.Thread(target=self._attempt, args=(self._close,), daemon=True)
            close.start()

    def is_alive(self) -> bool:
        """Whether this process is still saving."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Blocks until this process has finished saving."""
        if self._thread:
            self._thread.join()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Runs a part of the save; keeps the first error."""
        try:
            work()
        except SaveFailed as error:
            self.error = self.error or error
        except Exception as error:
            why = disk.error_line(error, self._path.run, self._bytes)
            self.error = self.error or SaveFailed(f"checkpoint {self.step} is not saved: {why}")
            # Not chained: the traceback would keep the arrays in memory until the next attempt.

    def _write(self, args: Any) -> None:
        """Starts Orbax, if process 0 can write to the folder; either all processes fail or none."""
        collectives.run_on_primary(lambda: layout.remove_unfinished(self._path.run))
        collectives.run_on_primary(lambda: layout.make_writable(self._path.run))
        collectives.run_on_primary(lambda: disk.require_room(self._path.run, self._bytes))
        self._orbax.save(layout.folder_of(self._path.run, self.step), args=args)

    def _close(self) -> None:
        """Waits until the step is written; ends Orbax's threads even if writing failed."""
        # `close` stops at every error of a failed save: one for the arrays, several for metadata.
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
            name = layout.quarantine(self._path.run, self.step)
            raise OSError(f"set aside as {name} after reading back: {error.reason}") from error
        except UsageError as error:
            raise SaveFailed(
                f"checkpoint {self.step} is written but could not be read back; it is kept, and so "
                f"are all older ones: {reader.error_text(error)}"
            ) from error
        then()  # first, since it frees disk space
        damage.record_small_files(self._path.folder)

    def _verify(self) -> None:
        """Reads the step back and compares it; retries errors that do not prove damage."""
        for _ in range(READ_RETRIES):
            try:
                reader.verify(self._path, self._tree)
                return
            except CorruptCheckpointError:
                raise
            except UsageError as error:
                log.warning("%s; retrying", error)
                time.sleep(RETRY_SECONDS)
        reader.verify(self._path, self._tree)
