"""Runs all checks of `mae_jax.tools.preflight`.

Every process calls `run`. `Report` shares the failures of single processes, so that none waits in a
collective that another has abandoned. Where this is impossible, in the middle of a step,
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
    config: Any, folder: str, show: Callable[[Row], None], *, allow_config_change: bool = False
) -> bool:
    """Runs every check; all processes must call this, inside `fail_fast.abort_all_on_error`.

    Args:
      config: the full configuration.
      folder: the workdir, from `workdir.resolve`; it is left unchanged.
      show: called with each row as soon as it is known.
      allow_config_change: as for the run.

    Returns:
      Whether no check failed, on any process.
    """
    report = Report(show)
    report.show(machine_checks.devices(), machine_checks.versions())
    try:
        task = run_checks.make_task(config, folder, allow_config_change=allow_config_change)
    except UsageError as error:
        # Processes that differ may hang in any later collective.
        report.show(Row(FAILED, "start", str(error), "no further checks were run"))
        return False
    processes = jax.process_count()
    consistent = f"{processes} processes with the same code, versions, configuration and data"
    report.show(Row(OK, "processes", consistent if processes > 1 else "one"))
    report.show(run_checks.recipe(task, config))
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    disk = _disk_space(task, config, folder, abstract)
    report.add(disk, machine_checks.host_memory(), machine_checks.clocks())
    report.add(machine_checks.all_reduce(mesh))
    state, row = run_checks.start(
        task, config, folder, abstract, allow_config_change=allow_config_change
    )
    if not report.add_shared(row) or state is None:
        return False
    data = task.summary()["data"]
    if task.num_steps == 0:
        report.show(Row(OK, "data", f"{data}; only evaluated: not read here"))
        return report.passed
    batches = task.train_batches(int(state.step))
    with contextlib.closing(batches):
        batch, row = run_checks.read_data(batches, config.batch_size // processes, data)
        # No process can take a step unless all of them have a batch.
        if not report.add(row):
            return False
        report.add_shared(run_checks.train_steps(task, config, mesh, abstract, state, batch))
    report.add(*machine_checks.device_memory(jax.local_devices()))
    return report.passed


def _disk_space(task: Any, config: Any, folder: str, abstract: Any) -> Row:
    """`machine_checks.disk_space` for all checkpoints that the run will keep."""
    options = config.checkpoint
    permanent = task.num_steps // options.keep_every if options.keep_every else 0
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    if filesystem.in_bucket(folder):
        return Row(OK, "disk", f"a bucket; each checkpoint takes {size / 1e9:,.1f} GB")
    keep = options.keep + permanent + bool(options.keep_best)
    existing = len(layout.steps(folder))
    return machine_checks.disk_space(folder, size, keep, existing)
