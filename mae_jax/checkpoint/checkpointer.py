"""Checkpoints with Orbax: `<run>/checkpoints/<step>/{state,metadata}`.

A folder of weights, which belongs to no run, is one `{state,metadata}` without an optimiser.
Saving, complete or not at all, by several processes and in the background, is Orbax's; which steps
there are, whether they are sound and which may go is ours (`step_folders`, `stored`, `integrity`).
"""

import contextlib
import dataclasses
import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.checkpoint import checksums, damage, layout, reader
from mae_jax.checkpoint import reader as stored
from mae_jax.checkpoint.checksums import Record
from mae_jax.checkpoint.layout import FOLDER, CheckpointPath, NoSuchStep, exists, find
from mae_jax.checkpoint.reader import (
    CorruptCheckpointError,
    load_arrays,
    load_metadata,
    parts,
    read_one,
)
from mae_jax.checkpoint.writer import SaveFailed, StepWriter
from mae_jax.distributed import collectives
from mae_jax.runtime import disk
from mae_jax.runtime.errors import UsageError

__all__ = [
    "FOLDER",
    "Checkpointer",
    "CorruptCheckpointError",
    "CheckpointPath",
    "NoSuchStep",
    "SaveFailed",
    "exists",
    "find",
    "load_arrays",
    "load_metadata",
    "parts",
    "read_one",
    "save_weights",
]

log = logging.getLogger(__name__)

_NEVER_SPOILT = ("params", "opt_state", "model_state", "ema")


class Checkpointer:
    """Saves and restores the state of one run.

    A save goes on in the background: it is written, read back and compared, and only then are older
    steps deleted. With several processes all must call the methods together.

    Args:
      workdir: folder of the run.
      keep: how many of the newest checkpoints to keep.
      keep_every: keep every checkpoint whose step is a multiple of this for ever; 0 for none.
      read_only: promise to change nothing.

    Raises:
      UsageError: what an interrupted process left cannot be removed.
    """

    def __init__(
        self, workdir: str, *, keep: int = 3, keep_every: int = 0, read_only: bool = False
    ):
        self.run = layout.absolute(workdir)
        self._keep, self._keep_every, self._read_only = keep, keep_every, read_only
        self._writer: StepWriter | None = None
        self._failure: SaveFailed | None = None
        self._attempts = 0
        if not read_only:
            try:
                collectives.run_on_primary(
                    lambda: layout.remove_unfinished(self.run, level=logging.INFO)
                )
            except OSError as error:
                raise UsageError(f"--workdir={workdir} cannot be written to: {error}") from error

    def steps(self) -> list[int]:
        """Steps that were saved, oldest first, be they sound or damaged; what process 0 sees."""
        return collectives.broadcast_ints(lambda: layout.steps(self.run))

    def latest_step(self) -> int | None:
        """Newest of them, or None."""
        return max(self.steps(), default=None)

    def save(self, state: Any, metadata: dict[str, Any]) -> None:
        """Starts to write the state and its description; returns before it is done.

        Waits for the save before. `state` may be donated as soon as this returns. What goes wrong
        with the disk, at once or later, is for `failure` and `wait` to tell; the same step can then
        be saved again.

        Raises:
          FloatingPointError: NaN or infinity in the state, which is not written.
        """
        self._settle()
        step = int(state.step)
        try:
            if step in self.steps():
                return
        except OSError as error:
            why = disk.error_line(error, self.run)
            self._failure = SaveFailed(f"checkpoint {step} is not saved: {why}")
            return
        parts = _parts(state)
        record, spoilt = checksums.checksums(parts)
        spoilt = [name for name in spoilt if name.startswith(_NEVER_SPOILT)]
        if spoilt:
            raise FloatingPointError(
                f"the state after step {step} is not saved: not finite are {checksums.some(spoilt)}"
            )
        self._attempts += 1
        self._writer = StepWriter(self._found(step), parts, self._attempts)
        self._writer.begin(_save_args(parts, metadata, record), then=lambda: self._prune(step))

    def failure(self) -> SaveFailed | None:
        """What went wrong with a save since last asked, once; does not wait for one under way."""
        if self._writer and not any(collectives.all_gather(self._writer.running)):
            self._settle()
        failure, self._failure = self._failure, None
        return failure

    def wait(self) -> None:
        """Blocks until everything is on disk and read back.

        Raises:
          SaveFailed: something went wrong, and `failure` has not told.
        """
        self._settle()
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def close(self) -> None:
        """Waits for the save under way. A failure that nobody asked for is logged."""
        if self._writer:
            self._writer.join()
        for failure in (self._failure, self._writer and self._writer.error):
            if failure:
                log.error("%s", failure)

    def metadata(self, step: int) -> dict[str, Any]:
        """The description saved with a step.

        Raises:
          DamagedCheckpoint: it cannot be read, or is not what was written.
        """
        found = self._found(step)
        return reader.read_on_all_hosts(found.folder, lambda: stored.read_metadata(found))[0]

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, laid out as `abstract` says, on however many devices.

        Raises:
          DamagedCheckpoint: it cannot be read, or is not what was saved; on every process.
          UsageError: it is the state of another model or optimiser.
        """
        found, wanted = self._found(step), _parts(abstract)
        record, restored = reader.read_on_all_hosts(found.folder, lambda: _read(found, wanted))
        if record:
            reader.read_on_all_hosts(found.folder, lambda: _compare(found, record, restored))
        else:
            log.warning("checkpoint %d has no checksums (an earlier version): not verified", step)
        return abstract.replace(**restored)

    def set_aside(self, step: int, reason: str) -> None:
        """Renames a damaged step to corrupt-<step>, so that it is no longer one."""
        if self._read_only:
            log.warning("checkpoint %d is damaged: %s; a run would set it aside", step, reason)
            return

        def rename() -> None:
            name = layout.quarantine(self.run, step)
            log.warning("checkpoint %d is damaged: %s; set aside as %s", step, reason, name)

        collectives.run_on_primary(rename)

    def _found(self, step: int) -> CheckpointPath:
        return CheckpointPath(str(layout.folder_of(self.run, step)), self.run, step)

    def _prune(self, step: int) -> None:
        layout.prune(self.run, step, keep=self._keep, keep_every=self._keep_every)

    def _settle(self) -> None:
        """Waits for the save under way; all processes agree on how it went."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.join()
        if any(collectives.all_gather(writer.error is not None)):
            other = SaveFailed(f"checkpoint {writer.step} is not saved: another process failed")
            self._failure = writer.error or other
            with contextlib.suppress(OSError):  # the next save removes it, too
                collectives.run_on_primary(lambda: layout.remove_unfinished(self.run))


def save_weights(folder: str, params: Any, model_state: Any, metadata: dict[str, Any]) -> None:
    """Writes parameters (NumPy arrays) without a run; the folder appears when it is complete.

    Args:
      folder: must not exist.
      params: tree of parameters.
      model_state: statistics of the model, or {}.
      metadata: as those of a run's checkpoint.

    Raises:
      OSError: the disk has no room; or whatever Orbax makes of a disk that fails.
    """
    state = {"params": params} | ({"model_state": model_state} if model_state else {})
    arrays = checksums.names(state)
    disk.require_room(folder, sum(x.nbytes for x in arrays.values()))
    record, _ = checksums.host_record(arrays)
    args = _save_args(state, metadata, record)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(layout.absolute(folder), args=args)
    damage.record_small_files(layout.absolute(folder))


def _parts(state: Any) -> dict[str, Any]:
    """The fields of a state that hold anything; others are not written.

    A field that comes with a later version is then no obstacle to the runs of an earlier one.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _save_args(state: Any, metadata: dict[str, Any], record: Record) -> Any:
    described = checksums.add_digest(metadata | {stored.ARRAYS: record})
    return ocp.args.Composite(
        state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(described)
    )


def _read(found: CheckpointPath, wanted: dict[str, Any]) -> tuple[Record, dict[str, Any]]:
    """Record and arrays of a checkpoint; UsageError if they are not what is wanted."""
    _, record = stored.read_metadata(found)
    here = record or stored.shapes_on_disk(found)
    other = checksums.differences(here, checksums.shapes(wanted), checksums=False)
    if other:
        raise UsageError(
            f"checkpoint {found.step} of {found.run} does not fit this configuration's model and "
            f"optimiser: {checksums.some(other)}"
        )
    with stored.as_corrupt(found), contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
        folder = epath.Path(found.folder) / "state"
        return record, reader.restore(folder, args=ocp.args.StandardRestore(wanted))


def _compare(found: CheckpointPath, record: Record, restored: dict[str, Any]) -> None:
    with stored.as_corrupt(found):
        stored.compare(found, record, checksums.checksums(restored)[0])
