"""Where a run begins.

In this order: 1. the newest sound checkpoint in the workdir, 2. `config.resume` (another run's
whole state), 3. `config.init_from` (another run's weights), 4. from scratch. What is damaged in the
workdir is set aside, and the next older checkpoint used; a run that has saved something never
begins again by itself.
"""

import contextlib
from typing import Any, NamedTuple

from mae_jax import checkpoint, convert, step_folders, together
from mae_jax import config as config_lib
from mae_jax.errors import UsageError
from mae_jax.init_from import load_initial, origin, read_initial
from mae_jax.state import TrainState, create_state
from mae_jax.task import Task


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
      state: to begin with.
      provenance: what the weights began with, or {}.
      said: where that is, for a person.
      look_again: whether an evaluation at this step was cut short.
      account: of every parameter, where they are another run's: matched, fresh or unused.
    """

    state: TrainState
    provenance: dict[str, Any]
    said: str
    look_again: bool = False
    account: dict[str, Any] | None = None


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings and data that compute something else now, one text each.

    Args:
      old: metadata of a checkpoint of the run.
      new: those that a checkpoint would get now.
    """
    was, now = old["data"]["source"], new["data"]["source"]
    # The same data may lie elsewhere now.
    keys = [key for key in was if key != "root" and was[key] != now.get(key)]
    data = [f"data {key}: {was[key]} -> {now.get(key)}" for key in keys]
    return [*config_lib.changes(old["config"], new["config"]), *data]


def check_same_run(old: dict[str, Any], new: dict[str, Any], allow_change: bool) -> None:
    """Refuses to continue a run with `changes`.

    Args:
      old, new: as those of `changes`.
      allow_change: refuse nothing.

    Raises:
      UsageError: lists what changed.
    """
    lines = changes(old, new)
    if lines and not allow_change:
        raise UsageError(
            f"the run to continue had another configuration ({'; '.join(lines)}): give a new "
            "--workdir, or --allow_config_change to continue with the new one"
        )


def check_workdir(task: Task, saver: checkpoint.Checkpointer, allow_change: bool) -> None:
    """`check_same_run` of the newest checkpoint in the workdir that says what it is.

    Changes nothing, so that a refusal leaves no trace.
    """
    for step in reversed(saver.steps()):
        with contextlib.suppress(checkpoint.DamagedCheckpoint):  # for `start_state` to deal with
            return check_same_run(saver.metadata(step), task.metadata(step), allow_change)


def start_state(
    task: Task,
    config: Any,
    workdir: str,
    saver: checkpoint.Checkpointer,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    """Where to begin; see the module's docstring. With a read-only `saver` no file changes.

    Raises:
      UsageError: all checkpoints of the workdir are damaged, or a start point does not fit.
    """
    for step in reversed(saver.steps()):
        try:
            return _continued(task, saver, step, abstract, allow_change)
        except checkpoint.DamagedCheckpoint as error:
            saver.set_aside(step, error.reason)
    aside = [*step_folders.corrupt(workdir), *map(str, saver.steps())]
    if aside:
        raise UsageError(
            f"every checkpoint in {workdir}/{checkpoint.FOLDER} is damaged ({', '.join(aside)}): "
            "give another --workdir, with --config.resume=RUN to continue another run or a copy of "
            "this one, or remove that folder to begin anew"
        )
    if misnamed := step_folders.misnamed(workdir):
        raise UsageError(
            f"{workdir}/{checkpoint.FOLDER} has {', '.join(misnamed)}, which no run writes: name "
            f"a step's folder by its number ({int(misnamed[0])}), or move it away to start over"
        )
    if config.resume:
        return checkpoint.read_one(
            config.resume,
            lambda found: _resumed(task, config.resume, found, abstract, allow_change),
            find=together.find_one,
        )
    if not config.init_from:
        return Start(create_state(task, abstract), {}, "from scratch")
    return _initialized(task, config, abstract)


def _resumed(
    task: Task, path: str, found: checkpoint.Found, abstract: TrainState, allow_change: bool
) -> Start:
    """Another run's state in a new workdir."""
    step_folders.require_run(path, found)
    with contextlib.closing(checkpoint.Checkpointer(found.run, read_only=True)) as other:
        start = _continued(task, other, found.step, abstract, allow_change)
    return start._replace(said=f"{start.said}, of {found.run} in a new workdir")


def _initialized(task: Task, config: Any, abstract: TrainState) -> Start:
    """A new run with another model's weights, which are read before anything is compiled."""
    path = config.init_from

    def read(place: str) -> convert.Model:
        return together.read(place, lambda: read_initial(config, place))

    if convert.is_file(path):
        initial = read(path)
    else:
        find = together.find_one
        initial = checkpoint.read_one(path, lambda found: read(found.folder), find=find)
    state, account = load_initial(initial, task, create_state(task, abstract), path=path)
    matched, fresh = len(account["matched"]), len(account["fresh"])
    said = f"weights from {path}: {matched} of {matched + fresh} arrays"
    return Start(state, origin(initial, path), said, account=account)


def _continued(
    task: Task,
    saver: checkpoint.Checkpointer,
    step: int,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    old, new = saver.metadata(step), task.metadata(step)
    check_same_run(old, new, allow_change)
    state = saver.restore(step, abstract)
    changed = f", changed: {'; '.join(changes(old, new))}" if changes(old, new) else ""
    said = f"continuing after step {step} of {task.num_steps}{changed}"
    return Start(state, old.get("provenance", {}), said, old.get("look_again", False))
