"""Checkpoints with Orbax: `<run>/checkpoints/<step>/{state,metadata}`.

A folder of weights, which belongs to no run, is one `{state,metadata}` without an optimizer.
Orbax writes checkpoints atomically, from several processes, in the background. This package decides
which steps exist, whether they are intact, and which may be deleted (`layout`, `reader`,
`checksums`).
"""

import contextlib
import dataclasses
import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.checkpoint import best, checksums, damage, layout, reader
from mae_jax.checkpoint.best_tracker import METRICS, BestTracker
from mae_jax.checkpoint.checksums import Record
from mae_jax.checkpoint.layout import CheckpointPath
from mae_jax.checkpoint.writer import SaveFailed, StepWriter
from mae_jax.distributed import collectives
from mae_jax.runtime import disk
from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)

_MUST_BE_FINITE = ("params", "opt_state", "model_state", "ema")


class Checkpointer:
    """Saves and restores the state of one run.

    Saving continues in the background. A step is written, read back and compared; only then are
    older steps deleted. With several processes, all must call the methods together.

    Args:
      workdir: folder of the run.
      keep: number of newest checkpoints to keep.
      keep_every: checkpoints whose step is a multiple of this are kept permanently; 0 keeps none.
      keep_best: metric (`split/name`) by which the best checkpoint is kept; "" for none.
      read_only: change nothing on disk.

    Raises:
      UsageError: files of an interrupted process cannot be removed.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep: int = 3,
        keep_every: int = 0,
        keep_best: str = "",
        read_only: bool = False,
    ):
        self.run = layout.absolute(workdir)
        self._keep, self._keep_every, self._read_only = keep, keep_every, read_only
        self._tracker = BestTracker(self.run, keep_best)
        self._writer: StepWriter | None = None
        self._error: SaveFailed | None = None
        self._attempts = 0
        if not read_only:
            try:
                collectives.run_on_primary(
                    lambda: layout.remove_unfinished(self.run, level=logging.INFO)
                )
            except OSError as error:
                raise UsageError(f"--workdir={workdir} cannot be written to: {error}") from error

    def steps(self) -> list[int]:
        """Saved steps, oldest first, intact or damaged, as process 0 sees them."""
        return collectives.broadcast_ints(lambda: layout.steps(self.run))

    def latest_step(self) -> int | None:
        """Newest saved step, or None."""
        return max(self.steps(), default=None)

    def save(self, state: Any, metadata: dict[str, Any]) -> None:
        """Starts to write the state and its metadata; returns before the write is complete.

        Waits for the previous save first. `state` may be donated once this returns. Disk errors,
        immediate or later, are reported by `pop_error` and `wait`; the step can then be saved
        again.

        Args:
          state: after a step.
          metadata: JSON; `metrics` are the values of the step's evaluation by `split/name`.

        Raises:
          FloatingPointError: the state contains NaN or infinity; it is not written.
        """
        self._finish_save()
        step = int(state.step)
        try:
            if step in self.steps():
                return
        except OSError as error:
            why = disk.error_line(error, self.run)
            self._error = SaveFailed(f"checkpoint {step} is not saved: {why}")
            return
        parts = _parts(state)
        record, nonfinite = checksums.checksums(parts)
        nonfinite = [name for name in nonfinite if name.startswith(_MUST_BE_FINITE)]
        if nonfinite:
            raise FloatingPointError(
                f"the state after step {step} is not saved, it has NaN or infinity in "
                f"{checksums.abbreviate(nonfinite)}"
            )
        self._attempts += 1
        self._writer = StepWriter(self._path(step), parts, self._attempts)
        args = _save_args(parts, metadata, record)
        new = best.candidate(self._tracker.metric, step, metadata.get(METRICS, {}))
        self._tracker.pending = new
        self._writer.start(args, then=lambda: self._saved(step, new))

    def recover_best(self) -> None:
        """Determines the best of the saved steps, after a restart.

        Raises:
          OSError: the checkpoints cannot be listed.
        """
        collectives.run_on_primary(self._tracker.recover)

    def is_best(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether to save the state after this step because it is the best so far.

        Process 0 decides. If the step is saved already, it is only recorded as the best one.

        Args:
          step: number of completed steps.
          metrics: values by `split/name`.
        """
        if not self._tracker.metric:
            return False

        def decide() -> list[int]:
            new = best.candidate(self._tracker.metric, step, metrics)
            if new is None or not self._tracker.is_better(new):
                return [0]
            with contextlib.suppress(OSError):
                if step in layout.steps(self.run):  # evaluated again after an interruption
                    self._tracker.add(new)
                    return [0]
            return [1]

        return bool(collectives.broadcast_ints(decide)[0])

    def pop_error(self) -> SaveFailed | None:
        """Returns the error of a failed save once, or None. Does not wait for a running save."""
        if self._writer and not any(collectives.all_gather(self._writer.is_alive())):
            self._finish_save()
        error, self._error = self._error, None
        return error

    def wait(self) -> None:
        """Blocks until the last save is on disk and has been read back.

        Raises:
          SaveFailed: the save failed, and `pop_error` has not returned the error yet.
        """
        self._finish_save()
        error, self._error = self._error, None
        if error:
            raise error

    def close(self) -> None:
        """Waits for a running save. Errors that were not collected are logged."""
        if self._writer:
            self._writer.wait()
        for error in (self._error, self._writer and self._writer.error):
            if error:
                log.error("%s", error)

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata saved with a step.

        Raises:
          CorruptCheckpointError: they cannot be read, or differ from what was written.
        """
        path = self._path(step)
        return reader.read_on_all_hosts(path.folder, lambda: reader.read_metadata(path))[0]

    def restore(self, step: int, abstract: Any) -> Any:
        """Restores the state of a step with the shapes and shardings of `abstract`.

        The number of devices may differ from the run that saved it.

        Raises:
          CorruptCheckpointError: it cannot be read, or differs from what was saved; raised on every
            process.
          UsageError: the state belongs to another model or optimizer.
        """
        path, wanted = self._path(step), _parts(abstract)
        record, restored = reader.read_on_all_hosts(path.folder, lambda: _read(path, wanted))
        if record:
            reader.read_on_all_hosts(path.folder, lambda: _compare(path, record, restored))
        else:
            log.warning("checkpoint %d was saved without checksums and is not verified", step)
        return abstract.replace(**restored)

    def quarantine(self, step: int, reason: str) -> None:
        """Renames the folder of a damaged step to corrupt-<step>, so that it is not used again."""
        if self._read_only:
            log.warning("checkpoint %d is damaged: %s; a run would set it aside", step, reason)
            return

        def rename() -> None:
            name = layout.quarantine(self.run, step)
            log.warning("checkpoint %d is damaged: %s; set aside as %s", step, reason, name)

        collectives.run_on_primary(rename)

    def _path(self, step: int) -> CheckpointPath:
        return CheckpointPath(str(layout.folder_of(self.run, step)), self.run, step)

    def _saved(self, step: int, new: best.Best | None) -> None:
        """Called on process 0 once a step is saved and intact."""
        self._tracker.add(new)
        protected = self._tracker.protected()
        layout.prune(
            self.run, step, keep=self._keep, keep_every=self._keep_every, protected=protected
        )

    def _finish_save(self) -> None:
        """Waits for a running save; all processes agree on whether it succeeded."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.wait()
        self._tracker.pending = None
        if any(collectives.all_gather(writer.error is not None)):
            other = SaveFailed(f"checkpoint {writer.step} is not saved: another process failed")
            self._error = writer.error or other
            with contextlib.suppress(OSError):  # the next save removes it otherwise
                collectives.run_on_primary(lambda: layout.remove_unfinished(self.run))


def save_weights(folder: str, params: Any, model_state: Any, metadata: dict[str, Any]) -> None:
    """Writes parameters (NumPy arrays) that belong to no run; the folder appears atomically.

    Args:
      folder: must not exist.
      params: tree of parameters.
      model_state: non-trainable arrays of the model, or {}.
      metadata: as in a checkpoint of a run.

    Raises:
      OSError: the disk is full. Orbax may raise other errors when the disk fails.
    """
    state = {"params": params} | ({"model_state": model_state} if model_state else {})
    arrays = checksums.flatten(state)
    disk.require_room(folder, sum(x.nbytes for x in arrays.values()))
    record, _ = checksums.host_record(arrays)
    args = _save_args(state, metadata, record)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(layout.absolute(folder), args=args)
    damage.record_small_files(layout.absolute(folder))


def _parts(state: Any) -> dict[str, Any]:
    """The non-empty fields of a state; empty ones are not written.

    So a field added in a later version does not break checkpoints of earlier versions.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _save_args(state: Any, metadata: dict[str, Any], record: Record) -> Any:
    metadata = checksums.add_digest(metadata | {reader.ARRAYS: record})
    return ocp.args.Composite(
        state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
    )


def _read(path: CheckpointPath, wanted: dict[str, Any]) -> tuple[Record, dict[str, Any]]:
    """Record and arrays of a checkpoint; UsageError if shapes or dtypes differ from `wanted`."""
    _, record = reader.read_metadata(path)
    saved = record or reader.shapes_on_disk(path)
    mismatches = checksums.differences(saved, checksums.shapes(wanted), checksums=False)
    if mismatches:
        raise UsageError(
            f"checkpoint {path.step} of {path.run} does not fit this configuration's model and "
            f"optimizer: {checksums.abbreviate(mismatches)}"
        )
    with reader.as_corrupt(path), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        folder = epath.Path(path.folder) / "state"
        return record, handler.restore(folder, args=ocp.args.StandardRestore(wanted))


def _compare(path: CheckpointPath, record: Record, restored: dict[str, Any]) -> None:
    with reader.as_corrupt(path):
        reader.compare(path, record, checksums.checksums(restored)[0])
