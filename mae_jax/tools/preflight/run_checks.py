"""Checks of the run: its initial state, its data, and a few training steps.

All processes must call these functions together.
"""

import contextlib
import math
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.checkpoint import checkpointer, layout
from mae_jax.distributed import consistency, sharding
from mae_jax.distributed.fail_fast import EXPECTED
from mae_jax.runtime import text, workdir
from mae_jax.runtime.errors import first_line
from mae_jax.tasks import TASKS
from mae_jax.tools.preflight.machine_checks import timed
from mae_jax.tools.preflight.report import FAILED, OK, WARNING, Row
from mae_jax.train import run_info
from mae_jax.train.evaluation_runner import check_keep_best
from mae_jax.train.initial_state import start_state
from mae_jax.train.state import TrainState
from mae_jax.train.step import make_train_step
from mae_jax.train.task import Task

BATCHES = 4  # timed, after the first
STEPS = 3  # timed, after the first, which compiles
NO_MEMORY = "out of memory? docs/performance.md#when-it-does-not-fit"


def make_task(config: Any, folder: str, *, allow_config_change: bool) -> Any:
    """The run's task, if the workdir is not in use and all processes are consistent.

    Raises:
      UsageError: on every process, for everything that `main` rejects before it looks for a state.
    """
    first = jax.process_index() == 0
    with contextlib.ExitStack() as closing:
        with consistency.propagate_startup_error():
            sharding.make_mesh(**config.mesh)
            closing.enter_context(workdir.lock(folder, first=first))
            # Without a checkpoint the task needs nothing from the workdir, and would overwrite
            # files of an earlier start, such as the list of images.
            task = TASKS[config.task](config, folder if layout.exists(folder) else "")
            check_keep_best(task, config.checkpoint.keep_best)
            facts = run_info.consistency_facts(task, allow_config_change=allow_config_change)
        consistency.check_consistency(config, folder, facts)
    return task


def start(
    task: Task, config: Any, folder: str, abstract: TrainState, *, allow_config_change: bool
) -> tuple[TrainState | None, Row]:
    """(initial state of the run, row that says where it comes from); None if it cannot start."""
    saver = checkpointer.Checkpointer(folder, read_only=True)
    try:
        state, _, summary, *_ = start_state(
            task, config, folder, saver, abstract, allow_config_change
        )
    except EXPECTED as error:
        advice = NO_MEMORY if isinstance(error, jax.errors.JaxRuntimeError) else ""
        return None, Row(FAILED, "start", first_line(error), advice)
    step = int(state.step)
    damaged = [str(later) for later in saver.steps() if later > step]
    if damaged:
        advice = f"checkpoint {', '.join(damaged)} is damaged: later steps will be repeated"
        return state, Row(WARNING, "start", summary, advice)
    if 0 < task.num_steps <= step:
        advice = "the run is finished: choose another --workdir, or train for more epochs"
        return state, Row(WARNING, "start", summary, advice)
    return state, Row(OK, "start", summary)


def recipe(task: Task, config: Any) -> Row:
    """What is trained, and for how long."""
    facts = {"task": config.task, **task.summary()}
    names = ("task", "parameters", "trained", "global batch", "steps", "learning rate")
    return Row(OK, "recipe", "; ".join(f"{name} {facts[name]}" for name in names if name in facts))


def read_data(batches: Any, rows: int, data: str) -> tuple[Any, Row]:
    """(a batch, row with the reading speed of this host); None if nothing can be read.

    Args:
      batches: from `Task.train_batches`.
      rows: images per batch on this host.
      data: description of the data.
    """
    try:
        first, batch = timed(next, batches)
        seconds = sum(timed(next, batches)[0] for _ in range(BATCHES))
    except EXPECTED as error:
        result = f"{data}: {first_line(error)}"
        return None, Row(FAILED, "data", result, "docs/data.md lists the supported formats")
    rate = rows * BATCHES / max(seconds, 1e-9)
    result = f"{data}; {rate:,.0f} images/s on this host, first batch after {first:.1f} s"
    if not batches.bad_count:
        return batch, Row(OK, "data", result)
    bad = f"{result}; {batches.bad_count} of these images cannot be read"
    return batch, Row(WARNING, "data", bad, "the log names the files")


def train_steps(
    task: Task, config: Any, mesh: Mesh, abstract: TrainState, state: TrainState, batch: Any
) -> Row:
    """Takes a few training steps with the recipe's batch size; `state` is donated."""
    make: Any = make_train_step
    left = task.num_steps - int(state.step)
    step = make(task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum)
    try:
        on_device = sharding.to_device(mesh, batch)
        compiling, (state, values) = timed(step, state, on_device)
        metrics, times = [values], []
        for _ in range(STEPS):
            seconds, (state, values) = timed(step, state, on_device)
            metrics.append(values)
            times.append(seconds)
    except EXPECTED as error:
        return Row(FAILED, "step", first_line(error), NO_MEMORY)
    loss = float(values["loss"])
    result = (
        f"loss {loss:.4g}, {config.batch_size / min(times):,.0f} images/s; compiled in "
        f"{compiling:.0f} s; at this speed {left:,} steps take {text.duration(min(times) * left)}"
    )
    if not math.isfinite(loss) or any(float(values["skipped"]) for values in metrics):
        result = f"not finite (docs/fault_tolerance.md#non-finite-updates): {result}"
        advice = "check the images, --config.data.mean and data.std, and --config.optim.base_lr"
        return Row(FAILED, "step", result, advice)
    return Row(OK, "step", result)
