"""Looks, before an expensive run, whether this machine and the others can do it.

The command is `mae_jax.tools.preflight`. Every process calls `look`; what only one of them sees is
shared by `together`, so that no process waits in a collective that another has given up.
"""

import contextlib
import glob
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax import agreement, sharding, step_folders, together, workdir
from mae_jax.errors import RunError, UsageError
from mae_jax.state import abstract_state, create_state
from mae_jax.tasks import TASKS
from mae_jax.train_step import make_train_step

OK, WARNING, FAILED = "✓", "!", "✗"
BATCHES = 4  # read after the first, for the speed of reading
STEPS = 3  # after the first, which compiles
CLOCK_SECONDS = 60
HOST_GB = 4.0  # of memory that should be free
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
EXPECTED = (OSError, UsageError, RunError, jax.errors.JaxRuntimeError)


class Row(NamedTuple):
    """One thing that was looked at.

    Attributes:
      mark: OK, WARNING or FAILED.
      name: of what.
      seen: what was found.
      advice: what to do, where something is to be done.
    """

    mark: str
    name: str
    seen: str
    advice: str = ""


def look(config: Any, folder: str, tell: Callable[[Row], None]) -> bool:
    """Makes every check; all processes of the run must call this.

    Args:
      config: the whole configuration.
      folder: the workdir, from `workdir.resolve`; it is left as it was.
      tell: gets a row as soon as it is known.

    Returns:
      Whether nothing failed, on any process.
    """
    rows: list[Row] = []

    def add(found: Sequence[Row]) -> bool:
        rows.extend(found)
        for row in found:
            tell(row)
        return not any(together.everywhere(any(row.mark == FAILED for row in found)))

    tell(row := devices())
    rows.append(row)
    try:
        task = _start(config, folder)
    except UsageError as error:
        # Processes that are not alike may hang in whatever they do next.
        tell(Row(FAILED, "start", str(error), "nothing else was looked at"))
        return False
    processes = jax.process_count()
    alike = f"{processes} processes with the same code, versions, configuration and data"
    tell(Row(OK, "processes", alike if processes > 1 else "one"))
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    there = len(step_folders.steps(folder))
    fine = add([room(folder, size, config.checkpoint.keep, there), host_memory(), clocks()])
    fine = add([all_reduce(mesh)]) and fine
    if task.num_steps == 0:
        return add([Row(OK, "data", "evaluated only: not read here")]) and fine
    batches = task.train_batches(0)
    with contextlib.closing(batches):
        batch, found = reading(batches, config.batch_size // processes)
        # Without a batch on every process there is no step on any.
        if not add([found]):
            return False
        return add(stepping(task, config, mesh, abstract, batch)) and fine


def _start(config: Any, folder: str) -> Any:
    """What `main` does before it looks for a state to begin with. Returns the task."""
    first = jax.process_index() == 0
    with contextlib.ExitStack() as closing:
        with agreement.shared_errors():
            sharding.make_mesh(**config.mesh)
            closing.enter_context(workdir.only_run(folder, first=first))
            task = TASKS[config.task](config, folder)
            data = task.metadata(0)["data"]
        agreement.check(config, folder, data)
    return task


def devices() -> Row:
    """Which devices jax has, and whether there are others that it does not see."""
    here = jax.local_devices()
    seen = f"{jax.device_count()} x {here[0].device_kind}, {len(here)} of this process"
    unseen = [path for pattern in DEVICE_FILES for path in glob.glob(pattern)]
    if here[0].platform == "cpu" and unseen:
        advice = f"jax does not see {unseen[0]}: remove .venv, and let launch/local.sh make it here"
        return Row(WARNING, "devices", seen, advice)
    return Row(OK, "devices", seen)


def room(folder: str, size: int, keep: int, there: int = 0) -> Row:
    """Whether the disk has room for the checkpoints: those that are kept, and the next one.

    Args:
      folder: the workdir, which need not exist.
      size: bytes of the state.
      keep: how many checkpoints are kept.
      there: how many of these are on the disk already.
    """
    more = max(1, keep + 1 - there)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free, needed = shutil.disk_usage(folder).free, size * more
    seen = f"{free / 1e9:,.1f} GB free, {more} more checkpoints take {needed / 1e9:,.1f} GB"
    if free < needed:
        return Row(FAILED, "disk", seen, "another --workdir, or fewer: --config.checkpoint.keep=1")
    return Row(OK, "disk", seen)


def host_memory() -> Row:
    """Memory that is free on this host, where Linux tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
    except FileNotFoundError:
        return Row(OK, "host", f"{os.cpu_count()} CPUs")
    free = int(lines["MemAvailable"].split()[0]) / 2**20
    seen = f"{os.cpu_count()} CPUs, {free:,.1f} GB of memory free"
    advice = "end what else runs here, or --config.data.prefetch=1 --config.data.cache=none"
    return Row(OK, "host", seen) if free >= HOST_GB else Row(WARNING, "host", seen, advice)


def clocks() -> Row:
    """How far the clocks of the processes are apart."""
    together.everywhere(0)  # then all of them look at the same moment
    read = together.everywhere(int(time.time()))
    apart = max(read) - min(read)
    seen = f"within {apart} s" if len(read) > 1 else "one process"
    if apart <= CLOCK_SECONDS:
        return Row(OK, "clocks", seen)
    wrong = int(np.argmax(np.abs(np.array(read) - np.median(read))))
    return Row(WARNING, "clocks", seen, f"process {wrong} is furthest off: set the clocks by NTP")


def all_reduce(mesh: Mesh) -> Row:
    """Seconds that a sum over all devices takes, as that of the gradients."""
    if mesh.size == 1:
        return Row(OK, "all-reduce", "one device")
    megabytes = 4 if jax.default_backend() == "cpu" else 64
    shape = (mesh.size, megabytes * 2**18)
    ones: Any = jax.jit(lambda: jnp.ones(shape), out_shardings=sharding.batch_sharding(mesh))
    total: Any = jax.jit(lambda x: x.sum(0), out_shardings=sharding.replicated(mesh))
    values = ones()
    seconds = min(_seconds(total, values)[0] for _ in range(6))
    wrong = float(total(values)[0]) != mesh.size
    moved = 2 * (mesh.size - 1) / mesh.size * megabytes * 2**20
    seen = f"{megabytes} MB in {seconds * 1e3:.2f} ms, {moved / seconds / 1e9:.1f} GB/s a device"
    if wrong:
        return Row(FAILED, "all-reduce", "the sum is wrong", "a device or a cable is broken")
    return Row(OK, "all-reduce", seen)


def reading(batches: Any, rows: int) -> tuple[Any, Row]:
    """(a batch, how fast this host reads); None where nothing can be read."""
    try:
        first, batch = _seconds(next, batches)
        seconds = sum(_seconds(next, batches)[0] for _ in range(BATCHES))
    except EXPECTED as error:
        return None, Row(FAILED, "data", f"{error}", "docs/data.md says what can be read")
    rate = rows * BATCHES / max(seconds, 1e-9)
    bad = f", {batches.bad_count} bad images" if batches.bad_count else ""
    seen = f"{rate:,.0f} images/s on this host; the first batch took {first:.1f} s{bad}"
    return batch, Row(WARNING if bad else OK, "data", seen, "see the log for the files" * bool(bad))


def stepping(task: Any, config: Any, mesh: Mesh, abstract: Any, batch: Any) -> list[Row]:
    """Some steps of training with the recipe's batch, from a new state."""
    make: Any = make_train_step
    step = make(task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum)
    try:
        on_device = sharding.to_device(mesh, batch)
        compiling, (state, values) = _seconds(step, create_state(task, abstract), on_device)
        times = []
        for _ in range(STEPS):
            seconds, (state, values) = _seconds(step, state, on_device)
            times.append(seconds)
    except EXPECTED as error:
        first = str(error).splitlines()[0]
        if jax.process_count() > 1:  # the others are in the middle of the step
            raise RunError(f"step: {first}") from error
        advice = "out of memory? docs/performance.md#when-it-does-not-fit"
        return [Row(FAILED, "step", first, advice)]
    loss = float(values["loss"])
    seconds = min(times)
    days = seconds * task.num_steps / 86400
    seen = (
        f"loss {loss:.4g}, {config.batch_size / seconds:,.0f} images/s; compiled in "
        f"{compiling:.0f} s; at this speed all {task.num_steps:,} steps take {days:,.1f} days"
    )
    if not math.isfinite(loss):
        return [Row(FAILED, "step", seen, "look at the images, --config.data.mean and data.std")]
    return [Row(OK, "step", seen), *_device_memory()]


def _device_memory() -> list[Row]:
    stats = jax.local_devices()[0].memory_stats() or {}
    peak, limit = stats.get("peak_bytes_in_use"), stats.get("bytes_limit")
    if not peak or not limit:
        return []  # CPU does not tell
    seen = f"{peak / 1e9:.1f} of {limit / 1e9:.1f} GB at the most"
    if peak <= 0.9 * limit:
        return [Row(OK, "memory", seen)]
    return [Row(WARNING, "memory", seen, "it is close: docs/performance.md#when-it-does-not-fit")]


def _seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began, result
