"""Speed of the train step; the command is `mae_jax.tools.bench`."""

import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from mae_jax.distributed import sharding
from mae_jax.ops.patches import patchify, to_float, unpatchify
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools.bench import find_batch_size
from mae_jax.tools.bench.baselines import plain_mae
from mae_jax.tools.bench.baselines.torch_process import TorchProcess
from mae_jax.tools.bench.compile import compile_step, planned_bytes
from mae_jax.train import throughput
from mae_jax.train.state import TrainState, abstract_state, create_state

FIT_IMAGES = 256  # drawn for what a target learns: enough for its shapes
BASELINES = ("plain", "torch", "official")  # official: both


class Options(NamedTuple):
    """What to do beside timing our own step.

    Attributes:
      repeats: timed steps.
      against: one of BASELINES to alternate with, or "".
      torch_python: interpreter that has torch; "" for the one that is running.
      torch_compile: race `torch.compile` too.
      find_batch: look for the largest batch that fits.
    """

    repeats: int = 20
    against: str = ""
    torch_python: str = ""
    torch_compile: bool = False
    find_batch: bool = False


class PlainPretrain(Pretrain):
    """The same task in the order of the paper, with nothing done to make it fast."""

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
            every=self.config.target.loss_on == "all",
            dtype=self.model.dtype,
        )
        return loss, ({}, model_state)


class TimedStep:
    """One compiled train step with its own state, timed call by call.

    Attributes:
      compile_s: seconds of tracing and compiling.
      memory_mb: what the step needs on one device: its arguments and temporaries.
    """

    def __init__(self, task: Any, config: Any):
        mesh = sharding.make_mesh(**config.mesh)
        began = time.perf_counter()
        self.step: Any = compile_step(config, task, mesh)
        self.compile_s = time.perf_counter() - began
        self.memory_mb = planned_bytes(self.step) / 2**20
        self.state: TrainState = create_state(task, abstract_state(task, mesh))
        self.batch = sharding.to_device(mesh, synthetic_batch(task, config.batch_size))

    def __call__(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self.state, values = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, values))
        return time.perf_counter() - began


def synthetic_batch(task: Any, batch_size: int) -> dict[str, np.ndarray]:
    """Random images and labels 0 in the shapes that a task reads; this process's rows."""
    rows = batch_size // jax.process_count()
    shape = (rows, *task.model.image_size, task.model.channels)
    images = np.random.default_rng(jax.process_index()).integers(0, 256, shape, dtype=np.uint8)
    images = images.astype(task.config.data.dtype, copy=False)
    number = np.arange(rows, dtype=np.int32)
    return {"image": images, "label": np.zeros_like(number), "index": number}


def make_task(config: Any, kind: Any = None) -> Any:
    """The task of a recipe, without its data: but a task knows the size of them."""
    config.data.source = "shapes"
    if "num_classes" in config.model:
        config.model.num_classes = 0
    if "target" in config:
        config.target.fit_images = min(config.target.fit_images, FIT_IMAGES)
    return (kind or TASKS[config.task])(config, "")


def bench_step(config: Any, options: Options) -> dict[str, Any]:
    """Times the train step on a batch that lies on the devices.

    Args:
      config: a configuration of any task that trains; its data are not read.
      options: see there.

    Returns:
      For "ours" and each baseline a dict of numbers; "speed_up_over_NAME", the median over the
      turns of their ratio.

    Raises:
      UsageError: a baseline that does not exist, or not for this task.
    """
    against = options.against
    if against and config.task != "pretrain":
        raise UsageError(f"--against={against} is pre-training: take a pre-training recipe")
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
        result["largest_batch"] = find_batch_size.find_batch(config)
        config.batch_size = result["largest_batch"]
    steps: dict[str, Any] = {"ours": TimedStep(task, config)}
    if against in ("plain", "official"):
        steps["plain"] = TimedStep(make_task(config, PlainPretrain), config)
    if against in ("torch", "official"):
        for name, compiled in (("torch", False), ("torch_compile", True)):
            if not compiled or options.torch_compile:
                steps[name] = TorchProcess(task, config, options.torch_python, compiled)
    try:
        times = take_turns(steps, options.repeats)
    finally:
        for step in steps.values():
            if isinstance(step, TorchProcess):
                step.close()
    for name, step in steps.items():
        result[name] = numbers_of(times[name], step, config.batch_size, task.flops_per_image)
        if name != "ours":
            pairs = zip(times["ours"], times[name], strict=True)
            result[f"speed_up_over_{name}"] = round(statistics.median(b / a for a, b in pairs), 3)
    return result


def _check_comparable(target: Any, against: str) -> None:
    """Refuses targets that a baseline does not have."""
    if target.kind != "pixel":
        raise UsageError(f"--against={against} predicts pixels: set --config.target.kind=pixel")
    if target.loss_on != "masked" and against != "plain":
        raise UsageError(
            f"--against={against} takes its loss on masked patches: set "
            "--config.target.loss_on=masked"
        )


def take_turns(steps: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Seconds of each of several steps, one of each in turn; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            times[name].append(step())
    return {name: values[1:] for name, values in times.items()}


def numbers_of(times: list[float], step: Any, batch_size: int, flops: float) -> dict[str, Any]:
    """Median and spread; rates; utilisation by the official algorithm's FLOPs."""
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
