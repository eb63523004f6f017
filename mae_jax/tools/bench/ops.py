"""Benchmark of the detection operators: `mae_jax.tools.bench ops`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.ops.nms import nms
from mae_jax.ops.roi_align import pyramid_roi_align
from mae_jax.tools.bench.baselines.detection_inputs import Inputs, make_inputs
from mae_jax.tools.bench.baselines.torch_process import TorchProcess
from mae_jax.tools.bench.step import interleave
from mae_jax.train.compile_step import planned_bytes

OPERATORS = ("roi_align", "roi_align_grad", "nms")


class TimedOperator:
    """One of `OPERATORS`, compiled; each call is timed.

    Attributes:
      compile_s: seconds of tracing and compiling.
      memory_mb: memory of arguments, results and temporaries.
    """

    def __init__(self, operator: str, inputs: Inputs, chunk: int):
        function, arguments = _function(operator, inputs, chunk)
        self.arguments = jax.device_put(arguments)
        start = time.perf_counter()
        self.compiled: Any = jax.jit(function).lower(*self.arguments).compile()
        self.compile_s = time.perf_counter() - start
        self.memory_mb = planned_bytes(self.compiled) / 2**20

    def __call__(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.arguments))
        return time.perf_counter() - start


def bench_ops(
    image_size: int, channels: int, chunk: int, repeats: int, against: str, torch_python: str
) -> dict[str, Any]:
    """Times ROIAlign of 512 boxes, its gradient, and suppression in five levels of 2000 boxes.

    Args:
      image_size: side of the image in pixels.
      channels: channels of the pyramid.
      chunk: boxes pooled at a time.
      repeats: timed calls of each operator.
      against: "torchvision" to alternate with its operators on the CPU, or "".
      torch_python: Python interpreter that has torchvision; "" for the current one.

    Returns:
      Numbers for "ours" and torchvision, by operator: median and least time, time to compile, and
      memory of ours. "NAME_speed_up" is the median of the ratios of all rounds.

    Raises:
      UsageError: torchvision is not installed, or its process failed.
    """
    inputs = make_inputs(image_size, channels)
    result: dict[str, Any] = {name: {} for name in ("ours", against) if name}
    for operator in OPERATORS:
        steps: dict[str, Any] = {}
        try:
            if against:
                sizes = {"operator": operator, "image_size": image_size, "channels": channels}
                steps[against] = TorchProcess("torchvision_ops", sizes, torch_python)
            steps["ours"] = TimedOperator(operator, inputs, chunk)
            times = interleave(steps, repeats)
        finally:
            if against in steps:
                steps[against].close()
        for name, step in steps.items():
            result[name] |= {
                f"{operator}_ms": round(1000 * statistics.median(times[name]), 2),
                f"{operator}_min_ms": round(1000 * min(times[name]), 2),
                f"{operator}_compile_s": round(step.compile_s, 1),
            }
        result["ours"][f"{operator}_memory_mb"] = round(steps["ours"].memory_mb, 1)
        if against:
            pairs = zip(times["ours"], times[against], strict=True)
            ratio = statistics.median(theirs / ours for ours, theirs in pairs)
            result[f"{operator}_speed_up"] = round(ratio, 3)
    return result


def _function(operator: str, inputs: Inputs, chunk: int) -> tuple[Callable[..., Any], tuple]:
    """The function of an operator and its arguments."""
    if operator == "nms":
        valid = jnp.ones(inputs.scores.shape, bool)
        level = lambda boxes, scores, valid: nms(boxes, scores, valid, 0.7)  # noqa: E731
        return jax.vmap(level), (inputs.candidates, inputs.scores, valid)

    def pool(pyramid: list[jax.Array], boxes: jax.Array) -> jax.Array:
        return pyramid_roi_align(pyramid, boxes, size=7, chunk=chunk)

    # Both passes, as torchvision's: only the gradient would not need the values.
    both = jax.value_and_grad(lambda *args: pool(*args).sum())
    return (pool if operator == "roi_align" else both), (inputs.pyramid, inputs.boxes)
