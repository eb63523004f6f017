"""Runs all checks of `mae_jax.tools.preflight`.

Every process calls `run`. `Report` shares what only one process sees, so that no process waits in
a collective that another has abandoned. Where sharing is impossible, in the middle of a step,
`fail_fast` ends all processes.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax

from mae_jax.checkpoint import layout
from mae_jax.distributed import sharding
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError
from mae_jax.tools.preflight import machine_checks, run_checks
from mae_jax.tools.preflight.report import FAILED, OK, WARNING, Report, Row
from mae_jax.train.state import abstract_state

__all__ = ["FAILED", "OK", "WARNING", "Row", "run"]


def run(
    config: Any, folder: str, tell: Callable[[Row], None], *, allow_config_change: bool = False
) -> bool:
    """Runs every check. All processes must call this, inside `fail_fast.abort_all_on_error`.

    Args:
      config: the full configuration.
      folder: the workdir, from `workdir.resolve`; it is not changed.
      tell: called with each row as soon as it is known.
      allow_config_change: the flag of the run.

    Returns:
      Whether no check failed on any process.
    """
    report = Report(tell)
    report.tell(machine_checks.devices(), machine_checks.versions())
    try:
        task = run_checks.make_task(config, folder, allow_config_change=allow_config_change)
    except UsageError as error:
        # Processes that differ may hang in the next check.
        report.tell(Row(FAILED, "start", str(error), "the other checks were skipped"))
        return False
    processes = jax.process_count()
    same = f"{processes} processes with the same code, versions, configuration and data"
    report.tell(Row(OK, "processes", same if processes > 1 else "one"))
    report.tell(run_checks.recipe(task, config))
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    report.add(
        _room(task, config, folder, abstract), machine_checks.host_memory(), machine_checks.clocks()
    )
    report.add(machine_checks.all_reduce(mesh))
    state, row = run_checks.start(
        task, config, folder, abstract, allow_config_change=allow_config_change
    )
    if not report.add_shared(row) or state is None:
        return False
    data = task.summary()["data"]
    if task.num_steps == 0:
        report.tell(Row(OK, "data", f"{data}; only evaluated, not read here"))
        return report.fine
    batches = task.train_batches(int(state.step))
    with contextlib.closing(batches):
        batch, row = run_checks.reading(batches, config.batch_size // processes, data)
        # A step needs a batch on every process.
        if not report.add(row):
            return False
        report.add_shared(run_checks.stepping(task, config, mesh, abstract, state, batch))
    report.add(*machine_checks.device_memory(jax.local_devices()))
    return report.fine


def _room(task: Any, config: Any, folder: str, abstract: Any) -> Row:
    """`machine_checks.room` for all checkpoints that the run will keep."""
    options = config.checkpoint
    permanent = task.num_steps // options.keep_every if options.keep_every else 0
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    if filesystem.in_bucket(folder):
        return Row(OK, "disk", f"a bucket; each checkpoint takes {size / 1e9:,.1f} GB")
    return machine_checks.room(folder, size, options.keep + permanent, len(layout.steps(folder)))
