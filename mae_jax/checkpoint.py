"""Checkpoints with Orbax: `<run>/checkpoints/<step>/{state,metadata}`.

A folder of weights, which belongs to no run, is one `{state,metadata}` without an optimiser.
The only module that knows Orbax. A save is asynchronous; a step folder appears only when complete.
"""

import contextlib
import dataclasses
import os
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mae_jax.errors import UsageError
from mae_jax.state import TrainState

FOLDER = "checkpoints"


class Checkpointer:
    """Saves and restores the state of one run.

    Args:
      workdir: folder of the run.
      keep: how many of the newest checkpoints to keep.
      keep_every: keep every checkpoint whose step is a multiple of this for ever; 0 for none.
      read_only: promise to change nothing.
    """

    def __init__(
        self, workdir: str, *, keep: int = 3, keep_every: int = 0, read_only: bool = False
    ):
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            os.path.join(os.path.abspath(workdir), FOLDER),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                read_only=read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """Newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the state and its description; returns before it is done.

        `state` may be donated as soon as this returns.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_parts(state)), metadata=ocp.args.JsonSave(metadata)
        )
        step = int(state.step)
        if step not in self._manager.all_steps() and not self._manager.save(step, args=args):
            raise RuntimeError(f"Orbax declined to save step {step} in {self._manager.directory}")

    def metadata(self, step: int) -> dict[str, Any]:
        """The description saved with a step."""
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["metadata"]

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, laid out as `abstract` says, on however many devices.

        Raises:
          UsageError: it is the state of another model or optimiser.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_parts(abstract)))
        try:
            return abstract.replace(**self._manager.restore(step, args=args)["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"checkpoint {step} of {self._manager.directory} does not fit this configuration's "
                f"model and optimiser: {' '.join(str(error).split())[:500]}"
            ) from error

    def failure(self) -> Exception | None:
        return None

    def wait(self) -> None:
        """Blocks until everything is on disk, and raises what went wrong on the way."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self._manager.close()


def _parts(state: TrainState) -> dict[str, Any]:
    """The fields of a state that hold anything; others are not written.

    A field that comes with a later version is then no obstacle to the runs of an earlier one.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def exists(run: str) -> bool:
    """Whether a run's folder holds a checkpoint."""
    return bool(_steps(run))


class Found(NamedTuple):
    """Where a checkpoint is.

    Attributes:
      folder: has `state` and `metadata`.
      run: the run's folder; "" for a folder of weights, which belongs to none.
      step: completed steps.
    """

    folder: str
    run: str
    step: int


def find(path: str) -> Found:
    """The checkpoint of a run folder, meaning its newest step, of a step's, or of a weights folder.

    Raises:
      UsageError: there is no checkpoint.
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    if all(os.path.isdir(os.path.join(path, part)) for part in ("state", "metadata")):
        in_run = name.isdigit() and os.path.basename(parent) == FOLDER
        return Found(path, os.path.dirname(parent), int(name)) if in_run else Found(path, "", 0)
    run = os.path.dirname(path) if name == FOLDER else path
    steps = _steps(run)
    if not steps:
        raise UsageError(
            f"no checkpoint under {path}: give a run folder that has {FOLDER}/<step>/, a step's "
            "folder itself, or weights (a folder of mae_jax, Hugging Face or timm; .pth, "
            ".safetensors or .npz)"
        )
    return Found(os.path.join(run, FOLDER, str(max(steps))), run, max(steps))


def find_run(path: str) -> Found:
    """The same, but for what is to be continued: weights alone are refused."""
    found = find(path)
    if not found.run:
        raise UsageError(
            f"{path} holds weights without an optimiser: begin with them, --config.init_from={path}"
        )
    return found


def save_weights(folder: str, params: Any, model_state: Any, metadata: dict[str, Any]) -> None:
    """Writes parameters (NumPy arrays) without a run; the folder appears when it is complete.

    Args:
      folder: must not exist.
      params: tree of parameters.
      model_state: statistics of the model, or {}.
      metadata: as those of a run's checkpoint.
    """
    state = {"params": params} | ({"model_state": model_state} if model_state else {})
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(os.path.abspath(folder), args=args)


def load_metadata(path: str) -> dict[str, Any]:
    """Description of the checkpoint at `path` (see `find`)."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(os.path.join(find(path).folder, "metadata"))


def parts(path: str) -> set[str]:
    """Fields of the state that the checkpoint at `path` (see `find`) holds anything of."""
    folder = epath.Path(find(path).folder) / "state"
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).tree
    return {name for name, part in tree.items() if part}


def load_arrays(path: str, parts: tuple[str, ...] = ("params",)) -> dict[str, Any]:
    """Parts of the state, as NumPy arrays, of the checkpoint at `path` (see `find`).

    Works on any machine, whatever devices the run had, and reads nothing else.

    Args:
      path: a run's folder or one step's.
      parts: fields of `TrainState`; one that the run did not have comes back as {}.
    """
    folder = epath.Path(find(path).folder) / "state"
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).tree
        shapes = {part: tree[part] for part in parts if tree.get(part)}
        item = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), shapes)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
        return dict.fromkeys(parts, {}) | reader.restore(folder, args=args)


def _steps(run: str) -> list[int]:
    folder = os.path.join(run, FOLDER)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [
        int(n) for n in names if n.isdigit() and os.path.isdir(os.path.join(folder, n, "state"))
    ]
