"""Compiles the train step for devices that need not exist.

Reports the compiler's analysis of the step: memory, FLOPs, and collectives between devices.
"""

import re
import time
from typing import Any

import jax
import numpy as np

from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError, one_line
from mae_jax.train.compile_step import compile_step, planned_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
# On TPU a reduce-scatter is a fusion that can be recognized only by its name. The all-reduce in its
# body must not be counted again.
_INSIDE_SCATTER = re.compile(r"^ *%?all-reduce-scatter[^\n]*\{\n.*?^ *\}", re.MULTILINE | re.DOTALL)
_SCATTER = re.compile(r"= (.*?) fusion\(.*calls=%?all-reduce-scatter")


def collectives(text: str) -> dict[str, list[tuple[str, int]]]:
    """Collectives in the text of a compiled step.

    Returns:
      Operation -> its results in order, each as (shapes, bytes).
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for line in _INSIDE_SCATTER.sub("", text).splitlines():
        match, scatter = _COLLECTIVE.search(line), _SCATTER.search(line)
        if match is None and scatter is None:
            continue
        name = match.group(2) if match else "reduce-scatter"
        arrays = _ARRAY.findall((match or scatter).group(1))  # type: ignore[union-attr]
        if match and f"{name}-start(" in line:
            arrays = arrays[len(arrays) // 2 :]  # (operands, results)
        size = sum(_size(dtype, dims) for dtype, dims in arrays)
        shapes = " ".join(f"{dtype}[{dims}]" for dtype, dims in arrays)
        found.setdefault(name, []).append((shapes, size))
    return found


def _size(dtype: str, dims: str) -> int:
    return _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n]))


def fake_devices(count: int) -> list[Any]:
    """This CPU as `count` devices.

    Raises:
      UsageError: JAX has already started in this process with another number.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if jax.device_count() != count:
            raise UsageError(f"--devices={count}: {error}") from error
    return jax.devices()


def topology_devices(topology: str) -> list[Any]:
    """Abstract devices of a TPU such as "v5e:4x4", for its compiler in libtpu.

    Raises:
      UsageError: libtpu is not installed, or there is no such TPU.
    """
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    except Exception as error:  # of many types
        raise UsageError(
            f"--topology={topology}: {one_line(error)} (a topology is like "
            "v5e:4x4 or v4:2x2x4, and needs `pip install libtpu`)"
        ) from error
    return list(description.devices)


def bench_compile(config: Any, task: Any, devices: list[Any]) -> dict[str, Any]:
    """Compiles the train step for these devices; returns numbers per device.

    Args:
      config: a configuration of any task that trains.
      task: its task.
      devices: of this machine, or from `topology_devices`.
    """
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    start = time.perf_counter()
    compiled = compile_step(config, task, mesh)
    seconds = time.perf_counter() - start
    plan, cost = compiled.memory_analysis(), compiled.cost_analysis()
    official = config.batch_size * task.flops_per_image / mesh.size
    return {
        "devices": f"{mesh.size} x {devices[0].device_kind}",
        "mesh": dict(mesh.shape),
        "compile_s": round(seconds, 1),
        "arguments_mb": round(plan.argument_size_in_bytes / 2**20, 1),
        "temporaries_mb": round(plan.temp_size_in_bytes / 2**20, 1),
        "memory_mb": round(planned_bytes(compiled) / 2**20, 1),
        "gflops": float(f"{cost['flops'] / 1e9:.4g}"),
        "gflops_of_the_official_algorithm": float(f"{official / 1e9:.4g}"),
        "collectives": {
            name: {"count": len(items), "mb": round(sum(size for _, size in items) / 2**20, 1)}
            for name, items in collectives(compiled.as_text()).items()
        },
    }
