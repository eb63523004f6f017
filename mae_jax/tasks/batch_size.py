"""Chooses the batch size of a run whose recipe or command line leaves it to the memory."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mae_jax.distributed import consistency, sharding
from mae_jax.runtime.errors import UsageError, require
from mae_jax.tasks import presets
from mae_jax.tasks.training_plan import FEW_STEPS
from mae_jax.train import largest_batch
from mae_jax.train.compile_step import StepDoesNotFit, compile_step, planned_bytes

log = logging.getLogger(__name__)

BY_MEMORY = 0
# A CPU is not faster with larger batches, and its memory is the host's.
MAX_ON_CPU = 256
GROUP = 32  # larger batches are multiples of it, so that groups of images divide them

MakeTask = Callable[[Any, str], Any]


def choose(make_task: MakeTask, config: Any, num_images: int) -> int:
    """The largest batch that fits into memory and suits the run.

    It is at most the number of images, the paper's batch (the learning rate is scaled linearly
    only up to there), and what leaves `FEW_STEPS` updates; on CPU at most `MAX_ON_CPU`. Process
    0 decides how much memory a device has, and all processes compile the same batches.

    Args:
      make_task: a task from a configuration and a workdir.
      config: the whole configuration, with the length of the run.
      num_images: number of training images.

    Raises:
      UsageError: the task trains nothing, or not even the smallest batch fits.
    """
    require(
        "optim" in config,
        f"--config.batch_size={BY_MEMORY} is for training, and {config.task} trains nothing: set "
        "a number of images",
    )
    most = min(num_images, presets.largest_batch(config))
    if not config.steps:
        most = min(most, int(config.epochs * num_images / FEW_STEPS))
    if jax.default_backend() == "cpu":
        most = min(most, MAX_ON_CPU)
    log.info("looking for the largest batch that fits in memory: compiling a few sizes")
    return find_largest(make_task, config, most=most)


def find_largest(make_task: MakeTask, config: Any, *, most: int | None = None) -> int:
    """The largest global batch whose step fits the memory of a device, within 2 %.

    The compiler's plan for images of the built-in data set decides, so more classes than it has,
    which hardly change the memory, do not count. Batches of more than `GROUP` are multiples of it.

    Args:
      make_task: see `choose`.
      config: the whole configuration; unchanged.
      most: the largest batch to consider; None for any.

    Returns:
      A multiple of the number of devices and of `grad_accum`; the smallest one if `most` is less.

    Raises:
      UsageError: not even the smallest batch fits.
    """
    mesh = sharding.make_mesh(**config.mesh)
    multiple = mesh.size * config.grad_accum
    if "mix" in config:
        multiple = math.lcm(multiple, 2)  # images are mixed in pairs
    limit = int(largest_batch.USABLE * consistency.from_primary(largest_batch.memory_limit()))
    probe = _without_data(config, multiple)
    with _quiet_data():
        task = make_task(probe, "")

    def bytes_at(batch_size: int) -> int:
        probe.batch_size = batch_size
        try:
            return planned_bytes(compile_step(probe, task, mesh))
        except StepDoesNotFit:
            return limit + limit // 10  # the compiler does not say how much is missing

    if most is not None:
        most = max(_rounded(most, multiple), multiple)
        if bytes_at(most) <= limit:
            return most
    batch = largest_batch.largest_batch(bytes_at, limit=limit, multiple=multiple)
    if not batch:
        raise UsageError(
            f"not even a batch of {multiple} fits {limit / 2**30:.1f} GB on a device (raise "
            "--config.mesh.fsdp, set --config.model.remat=blocks, or take a smaller model)"
        )
    return _rounded(batch if most is None else min(batch, most), multiple)


def _rounded(batch: int, multiple: int) -> int:
    """The batch, rounded down to a multiple of `multiple`, and of `GROUP` if it is large enough."""
    groups = math.lcm(multiple, GROUP)
    return batch // groups * groups or batch // multiple * multiple


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    """Data that only stand for those of the run are not logged."""
    logger = logging.getLogger("mae_jax.data")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _without_data(config: Any, batch_size: int) -> Any:
    """The configuration of a task with the same step, on data that need not be read."""
    probe = config.copy_and_resolve_references()
    probe.batch_size, probe.steps = batch_size, FEW_STEPS
    probe.eval_every = probe.figure_every = 0
    probe.data.source, probe.data.on_device = "shapes", False
    probe.data.num_train = max(batch_size, probe.data.num_train)
    if "num_classes" in probe.model:
        probe.model.num_classes = 0
    return probe
