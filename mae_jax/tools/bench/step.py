"""Benchmark of the train step: `mae_jax.tools.bench step`."""

import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from mae_jax.distributed import sharding
from mae_jax.ops.patches import patchify, to_float, unpatchify
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS, batch_size
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools.bench.baselines import plain_mae
from mae_jax.tools.bench.baselines.torch_process import TorchProcess
from mae_jax.train import throughput
from mae_jax.train.compile_step import compile_step, planned_bytes
from mae_jax.train.state import TrainState, abstract_state, create_state

FIT_IMAGES = 256  # to fit a target on: enough for its shapes
BASELINES = ("plain", "torch", "official")  # official: both


class Options(NamedTuple):
    """Options of the benchmark.

    Attributes:
      repeats: timed steps.
      against: one of BASELINES to alternate with, or "".
      torch_python: Python interpreter that has torch; "" for the current one.
      torch_compile: also time `torch.compile`.
      find_batch: use the largest batch that fits into memory.
    """

    repeats: int = 20
    against: str = ""
    torch_python: str = ""
    torch_compile: bool = False
    find_batch: bool = False


class PlainPretrain(Pretrain):
    """Pre-training with the paper's algorithm, without any optimization for speed."""

    def loss(self, params: Any, model_state: Any, batch: dict[str, jax.Array]) -> Any:
        patch = self.model.patch_size
        pixels = to_float(patchify(batch["image"], patch), **self.pixels)
        loss, _, _ = plain_mae.forward(
            params,
            unpatchify(pixels, patch, self.model.grid),
            batch["noise"],
            model=self.model,
            ratio=self.config.mask.ratio,
            normalize=self.config.target.normalize,
            loss_on_all=self.config.target.loss_on == "all",
            dtype=self.model.dtype,
        )
        return loss, ({}, model_state)


class TimedStep:
    """One compiled train step with its own state; each call is timed.

    Attributes:
      compile_s: seconds of tracing and compiling.
      memory_mb: memory of the step on one device: arguments and temporaries.
    """

    def __init__(self, task: Any, config: Any):
        mesh = sharding.make_mesh(**config.mesh)
        start = time.perf_counter()
        self.step: Any = compile_step(config, task, mesh)
        self.compile_s = time.perf_counter() - start
        self.memory_mb = planned_bytes(self.step) / 2**20
        self.state: TrainState = create_state(task, abstract_state(task, mesh))
        self.batch = sharding.to_device(mesh, synthetic_batch(task, config.batch_size))

    def __call__(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.state, values = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, values))
        return time.perf_counter() - start


def synthetic_batch(task: Any, batch_size: int) -> dict[str, np.ndarray]:
    """This process's rows of a batch of random images, as the task expects it; the rest is 0."""
    rows = batch_size // jax.process_count()
    batch = {
        name: np.zeros((rows, *field.shape), field.dtype)
        for name, field in task.data.fields.items()
    }
    random = np.random.default_rng(jax.process_index())
    image = batch["image"]
    batch["image"] = random.integers(0, 256, image.shape, np.uint8).astype(image.dtype)
    return batch | {"index": np.arange(rows, dtype=np.int32)}


def make_task(config: Any, kind: Any = None) -> Any:
    """The task of a recipe, with synthetic instead of real data."""
    config.data.source = "shapes"
    if "num_classes" in config.model:
        config.model.num_classes = 0
    if "target" in config:
        config.target.fit_images = min(config.target.fit_images, FIT_IMAGES)
    return (kind or TASKS[config.task])(config, "")


def bench_step(config: Any, options: Options) -> dict[str, Any]:
    """Times the train step on a batch that is already on the devices.

    Args:
      config: a configuration of any task that trains; its data are not read.
      options: see `Options`.

    Returns:
      A dict of numbers for "ours" and each baseline, and "speed_up_over_NAME": the median of the
      ratios of all rounds.

    Raises:
      UsageError: the baseline does not support this recipe.
    """
    against = options.against
    if against and config.task != "pretrain":
        raise UsageError(f"--against={against} needs a pre-training recipe")
    if against:
        _check_comparable(config.target, against)
    task = make_task(config)
    fields = getattr(task, "fields", {})
    if against in ("torch", "official") and fields.get("encoder_mask_tokens"):
        raise UsageError(
            f"--against={against}: the PyTorch step has no --config.model.encoder_mask_tokens; "
            "--against=plain has"
        )
    result: dict[str, Any] = {}
    if options.find_batch:
        result["largest_batch"] = batch_size.find_largest(TASKS[config.task], config)
        config.batch_size = result["largest_batch"]
    steps: dict[str, Any] = {"ours": TimedStep(task, config)}
    if against in ("plain", "official"):
        steps["plain"] = TimedStep(make_task(config, PlainPretrain), config)
    if against in ("torch", "official"):
        for name, compiled in (("torch", False), ("torch_compile", True)):
            if not compiled or options.torch_compile:
                sizes = _torch_sizes(task, config, compiled)
                steps[name] = TorchProcess("torch_mae", sizes, options.torch_python)
    try:
        times = interleave(steps, options.repeats)
    finally:
        for step in steps.values():
            if isinstance(step, TorchProcess):
                step.close()
    for name, step in steps.items():
        result[name] = summarize(times[name], step, config.batch_size, task.flops_per_image)
        if name != "ours":
            pairs = zip(times["ours"], times[name], strict=True)
            result[f"speed_up_over_{name}"] = round(statistics.median(b / a for a, b in pairs), 3)
    return result


def _torch_sizes(task: Any, config: Any, compiled: bool) -> dict[str, Any]:
    """Argument of the PyTorch baseline; `compiled` uses `torch.compile`."""
    return task.fields | {
        "batch_size": config.batch_size,
        "ratio": config.mask.ratio,
        "normalize": config.target.normalize,
        "dtype": np.dtype(task.model.dtype).name,
        "compile": compiled,
    }


def _check_comparable(target: Any, against: str) -> None:
    """Rejects targets that a baseline does not support."""
    if target.kind != "pixel":
        raise UsageError(f"--against={against} predicts pixels: set --config.target.kind=pixel")
    if target.loss_on != "masked" and against != "plain":
        raise UsageError(
            f"--against={against} computes the loss on masked patches only: set "
            "--config.target.loss_on=masked"
        )


def interleave(steps: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step in each round of one call per step, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            times[name].append(step())
    return {name: values[1:] for name, values in times.items()}


def summarize(times: list[float], step: Any, batch_size: int, flops: float) -> dict[str, Any]:
    """Median and range of the times, rates, and utilization by FLOPs of the official algorithm."""
    median = statistics.median(times)
    rate, devices = batch_size / median, jax.device_count()
    numbers = {
        "compile_s": round(step.compile_s, 1),
        "step_ms": round(1000 * median, 2),
        "fastest_ms": round(1000 * min(times), 2),
        "slowest_ms": round(1000 * max(times), 2),
        "images_per_s": round(rate, 2),
        "images_per_s_per_device": round(rate / devices, 2),
        "tflops_per_device": round(rate * flops / devices / 1e12, 3),
        "memory_mb": round(step.memory_mb, 1),
    }
    peak = throughput.peak_flops(jax.devices()[0])
    return numbers if peak is None else numbers | {"mfu": round(rate * flops / devices / peak, 4)}
