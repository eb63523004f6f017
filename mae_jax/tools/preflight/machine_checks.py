"""Checks of the machines: devices, versions, disk, memory, clocks and network.

All processes must call `clocks` and `all_reduce` together.
"""

import glob
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.distributed import collectives, sharding
from mae_jax.distributed.consistency import CLOCK_SECONDS
from mae_jax.runtime import disk, environment, host
from mae_jax.tools.preflight.report import FAILED, OK, WARNING, Row

HOST_GB = 4.0  # memory that should be free
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
IN_MEMORY = ("tmpfs", "ramfs")  # file systems that are kept in memory


def devices() -> Row:
    """The devices that JAX uses, and whether there are accelerators that it does not see."""
    local = jax.local_devices()
    result = f"{jax.device_count()} x {local[0].device_kind}, {len(local)} in this process"
    files = [path for pattern in DEVICE_FILES for path in glob.glob(pattern)]
    if local[0].platform == "cpu" and files:
        advice = f"JAX does not see {files[0]}: remove .venv, and recreate it with launch/local.sh"
        return Row(WARNING, "devices", result, advice)
    return Row(OK, "devices", result)


def versions() -> Row:
    """Versions of the installed packages and of this code."""
    packages = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    return Row(OK, "versions", f"{packages}, git {environment.git_revision()}")


def disk_space(folder: str, size: int, keep: int, existing: int = 0) -> Row:
    """Whether the checkpoints fit on the disk: all that are kept, and the next one.

    Args:
      folder: the workdir, which need not exist.
      size: bytes of the state.
      keep: number of checkpoints that are kept.
      existing: number of these that are already on the disk.
    """
    more = max(1, keep + 1 - existing)
    free, needed = disk.free_bytes(folder), size * more
    kind = _file_system(folder)
    result = (
        f"{free / 1e9:,.1f} GB free{f' ({kind})' * bool(kind)}, {more} more checkpoints take "
        f"{needed / 1e9:,.1f} GB"
    )
    if free < needed:
        advice = "choose another --workdir, or keep fewer: --config.checkpoint.keep=1"
        return Row(FAILED, "disk", result, advice)
    if kind in IN_MEMORY:
        advice = "this disk is memory, lost with the machine: choose another --workdir"
        return Row(WARNING, "disk", result, advice)
    return Row(OK, "disk", result)


def _file_system(folder: str) -> str:
    """Type of the file system that a folder is on; "" if it is unknown."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[1:3] for line in file]
    except FileNotFoundError:
        return ""
    folder = os.path.join(os.path.realpath(folder), "")
    candidates = [
        (len(mount_point), index, kind)
        for index, (mount_point, kind) in enumerate(mounts)
        if folder.startswith(os.path.join(mount_point.replace("\\040", " "), ""))
    ]
    return max(candidates, default=(0, 0, ""))[2]  # a later mount hides an earlier one


def host_memory() -> Row:
    """Whether this process has enough free memory."""
    free = host.available_memory() / 1e9
    result = f"{host.usable_cpus()} CPUs, {free:,.1f} GB of memory free"
    advice = "stop other programs, or set --config.data.prefetch=1 --config.data.cache=none"
    return Row(OK, "host", result) if free >= HOST_GB else Row(WARNING, "host", result, advice)


def clocks() -> Row:
    """How far apart the clocks of the processes are."""
    collectives.all_gather(0)  # a barrier, so that all read their clocks at the same time
    times = collectives.all_gather(int(time.time()))
    difference = max(times) - min(times)
    result = f"within {difference} s" if len(times) > 1 else "one process"
    if difference <= CLOCK_SECONDS:
        return Row(OK, "clocks", result)
    wrong = int(np.argmax(np.abs(np.array(times) - np.median(times))))
    advice = f"process {wrong} is furthest off: synchronize the clocks with NTP"
    return Row(WARNING, "clocks", result, advice)


def all_reduce(mesh: Mesh) -> Row:
    """Whether a sum over all devices, like that of the gradients, is correct, and how fast."""
    if mesh.size == 1:
        return Row(OK, "all-reduce", "one device")
    megabytes = 4 if jax.default_backend() == "cpu" else 64
    values = _numbered(mesh, megabytes * 2**18)
    add: Any = jax.jit(lambda x: x.sum(0), out_shardings=sharding.replicated(mesh))
    seconds = min(timed(add, values)[0] for _ in range(6))
    expected = mesh.size * (mesh.size + 1) / 2
    local = [shard.data for shard in add(values).addressable_shards]
    wrong = [x.device for x in local if (np.asarray(x) != expected).any()]
    moved = 2 * (mesh.size - 1) / mesh.size * megabytes * 2**20
    speed = moved / seconds / 1e9
    result = f"{megabytes} MB in {seconds * 1e3:.2f} ms, {speed:.1f} GB/s per device"
    if wrong:
        result = f"the sum is wrong on {', '.join(map(str, wrong))}"
        return Row(FAILED, "all-reduce", result, "a device or its connection is broken")
    return Row(OK, "all-reduce", result)


def _numbered(mesh: Mesh, length: int) -> jax.Array:
    """float32 [devices, length]: 1 on the first device, 2 on the second, and so on."""

    def rows() -> jax.Array:
        number = jnp.arange(1, mesh.size + 1, dtype=jnp.float32)
        return jnp.broadcast_to(number[:, None], (mesh.size, length))

    return jax.jit(rows, out_shardings=sharding.batch_sharding(mesh))()


def device_memory(devices: list[Any]) -> list[Row]:
    """Peak memory of the fullest of these devices; no row if unknown, as on CPU."""
    stats = [device.memory_stats() or {} for device in devices]
    known = [x for x in stats if x.get("peak_bytes_in_use") and x.get("bytes_limit")]
    if not known:
        return []
    fullest = max(known, key=lambda x: x["peak_bytes_in_use"] / x["bytes_limit"])
    peak, limit = fullest["peak_bytes_in_use"], fullest["bytes_limit"]
    result = f"peak {peak / 1e9:.1f} of {limit / 1e9:.1f} GB"
    if peak <= 0.9 * limit:
        return [Row(OK, "memory", result)]
    advice = "almost full: docs/performance.md#when-it-does-not-fit"
    return [Row(WARNING, "memory", result, advice)]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """(seconds, result) of a call, including its work on the devices."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result
