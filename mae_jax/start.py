"""Where a run begins.

In this order: 1. the newest sound checkpoint in the workdir, 2. `config.resume` (another run's
whole state), 3. `config.init_from` (another run's weights), 4. from scratch. What is damaged in the
workdir is set aside, and the next older checkpoint used; a run that has saved something never
begins again by itself.
"""

import contextlib
import logging
from typing import Any, NamedTuple

from mae_jax import checkpoint, step_folders, together
from mae_jax import config as config_lib
from mae_jax.errors import UsageError
from mae_jax.init_from import load_initial, origin, read_initial
from mae_jax.state import TrainState, create_state
from mae_jax.task import Task

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
      state: to begin with.
      provenance: what the weights began with, or {}.
      look_again: whether an evaluation at this step was cut short.
    """

    state: TrainState
    provenance: dict[str, Any]
    look_again: bool = False


def check_same_run(old: dict[str, Any], new: dict[str, Any], allow_change: bool) -> None:
    """Refuses to continue a run with settings or data that compute something else.

    Args:
      old: metadata of a checkpoint of the run.
      new: those that a checkpoint would get now.
      allow_change: refuse nothing.

    Raises:
      UsageError: lists what changed.
    """
    lines = config_lib.changes(old["config"], new["config"])
    was, now = old["data"]["source"], new["data"]["source"]
    # The same data may lie elsewhere now.
    lines += [
        f"data {k}: {was[k]} -> {now.get(k)}" for k in was if k != "root" and was[k] != now.get(k)
    ]
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
    """Where to begin; see the module's docstring.

    Raises:
      UsageError: all checkpoints of the workdir are damaged, or a start point does not fit.
    """
    while (step := saver.latest_step()) is not None:
        try:
            found = _continued(task, saver, step, abstract, allow_change)
        except checkpoint.DamagedCheckpoint as error:
            saver.set_aside(step, error.reason)
        else:
            log.info("continuing after step %d", step)
            return found
    aside = step_folders.corrupt(workdir)
    if aside:
        raise UsageError(
            f"every checkpoint in {workdir}/{checkpoint.FOLDER} is damaged ({', '.join(aside)}): "
            "give another --workdir, with --config.resume=RUN to continue another run or a copy of "
            "this one, or remove that folder to begin anew"
        )
    if config.resume:
        run = together.read(config.resume, lambda: checkpoint.find_run(config.resume)).run
        # That run may go on and save meanwhile: process 0 says which step.
        step = together.of_first(lambda: [checkpoint.find_run(config.resume).step])[0]
        with contextlib.closing(checkpoint.Checkpointer(run, read_only=True)) as other:
            found = _continued(task, other, step, abstract, allow_change)
        log.info("continuing %s after step %d in a new workdir", run, step)
        return found
    path = config.init_from
    if not path:
        return Start(create_state(task, abstract), {})
    initial = read_initial(config)  # before anything is compiled
    state = create_state(task, abstract)
    state = load_initial(initial, task, state, workdir, path=path)
    return Start(state, origin(initial, path))


def _continued(
    task: Task,
    saver: checkpoint.Checkpointer,
    step: int,
    abstract: TrainState,
    allow_change: bool,
) -> Start:
    metadata = saver.metadata(step)
    check_same_run(metadata, task.metadata(step), allow_change)
    state = saver.restore(step, abstract)
    return Start(state, metadata.get("provenance", {}), metadata.get("look_again", False))
