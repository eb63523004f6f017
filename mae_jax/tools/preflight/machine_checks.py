"""Checks of the machines: devices, versions, disk, memory, clocks, interconnect.

All processes must call `clocks` and `all_reduce` together.
"""

import glob
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.distributed import collectives, sharding
from mae_jax.distributed.consistency import CLOCK_SECONDS
from mae_jax.runtime import environment, host
from mae_jax.runtime.host import available_memory
from mae_jax.tools.preflight.report import FAILED, OK, WARNING, Row

HOST_GB = 4.0  # free memory that a run needs
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
IN_MEMORY = ("tmpfs", "ramfs")  # file systems


def devices() -> Row:
    """The devices of JAX, and whether there are others that it does not see."""
    here = jax.local_devices()
    seen = f"{jax.device_count()} x {here[0].device_kind}, {len(here)} of this process"
    unseen = [path for pattern in DEVICE_FILES for path in glob.glob(pattern)]
    if here[0].platform == "cpu" and unseen:
        advice = f"jax does not see {unseen[0]}: remove .venv, and let launch/local.sh make it here"
        return Row(WARNING, "devices", seen, advice)
    return Row(OK, "devices", seen)


def versions() -> Row:
    """Versions of the packages, and the revision of this code."""
    found = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    return Row(OK, "versions", f"{found}, git {environment.git_revision()}")


def room(folder: str, size: int, keep: int, there: int = 0) -> Row:
    """Whether the disk has room for the checkpoints to keep and one more.

    Args:
      folder: the workdir, which need not exist.
      size: bytes of the state.
      keep: number of checkpoints to keep.
      there: number of checkpoints already on the disk.
    """
    more = max(1, keep + 1 - there)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free, needed = shutil.disk_usage(folder).free, size * more
    kind = _file_system(folder)
    seen = (
        f"{free / 1e9:,.1f} GB free{f' ({kind})' * bool(kind)}, {more} more checkpoints take "
        f"{needed / 1e9:,.1f} GB"
    )
    if free < needed:
        return Row(
            FAILED,
            "disk",
            seen,
            "another --workdir, or fewer: --config.checkpoint.keep=1",
        )
    if kind in IN_MEMORY:
        return Row(WARNING, "disk", seen, "a RAM disk, gone with this machine: another --workdir")
    return Row(OK, "disk", seen)


def _file_system(folder: str) -> str:
    """Type of the file system that a folder is on; "" if unknown."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[1:3] for line in file]
    except FileNotFoundError:
        return ""
    folder = os.path.join(os.path.realpath(folder), "")
    parents = [
        (len(place), index, kind)
        for index, (place, kind) in enumerate(mounts)
        if folder.startswith(os.path.join(place.replace("\\040", " "), ""))
    ]
    return max(parents, default=(0, 0, ""))[2]  # of two mounts at one place the later one counts


def host_memory() -> Row:
    """CPUs and free memory for this process."""
    free = available_memory() / 1e9
    seen = f"{host.usable_cpus()} CPUs, {free:,.1f} GB of memory free"
    advice = "stop other programs, or --config.data.prefetch=1 --config.data.cache=none"
    return Row(OK, "host", seen) if free >= HOST_GB else Row(WARNING, "host", seen, advice)


def clocks() -> Row:
    """How far apart the clocks of the processes are."""
    collectives.all_gather(0)  # a barrier, so that all read their clocks together
    read = collectives.all_gather(int(time.time()))
    apart = max(read) - min(read)
    seen = f"within {apart} s" if len(read) > 1 else "one process"
    if apart <= CLOCK_SECONDS:
        return Row(OK, "clocks", seen)
    wrong = int(np.argmax(np.abs(np.array(read) - np.median(read))))
    return Row(WARNING, "clocks", seen, f"process {wrong} is furthest off: set the clocks by NTP")


def all_reduce(mesh: Mesh) -> Row:
    """Whether an all-reduce over all devices is correct, and its bandwidth."""
    if mesh.size == 1:
        return Row(OK, "all-reduce", "one device")
    megabytes = 4 if jax.default_backend() == "cpu" else 64
    values = _numbered(mesh, megabytes * 2**18)
    add: Any = jax.jit(lambda x: x.sum(0), out_shardings=sharding.replicated(mesh))
    seconds = min(timed(add, values)[0] for _ in range(6))
    expected = mesh.size * (mesh.size + 1) / 2
    here = [shard.data for shard in add(values).addressable_shards]
    wrong = [x.device for x in here if (np.asarray(x) != expected).any()]
    moved = 2 * (mesh.size - 1) / mesh.size * megabytes * 2**20
    seen = f"{megabytes} MB in {seconds * 1e3:.2f} ms, {moved / seconds / 1e9:.1f} GB/s a device"
    if wrong:
        seen = f"the sum is wrong on {', '.join(map(str, wrong))}"
        return Row(FAILED, "all-reduce", seen, "a device or a cable is broken")
    return Row(OK, "all-reduce", seen)


def _numbered(mesh: Mesh, length: int) -> jax.Array:
    """float32 [devices, length]: 1 on the first device, 2 on the second, and so on."""

    def rows() -> jax.Array:
        number = jnp.arange(1, mesh.size + 1, dtype=jnp.float32)
        return jnp.broadcast_to(number[:, None], (mesh.size, length))

    return jax.jit(rows, out_shardings=sharding.batch_sharding(mesh))()


def device_memory(devices: list[Any]) -> list[Row]:
    """Peak memory of the fullest device, if devices report it (CPU does not)."""
    stats = [device.memory_stats() or {} for device in devices]
    known = [x for x in stats if x.get("peak_bytes_in_use") and x.get("bytes_limit")]
    if not known:
        return []
    fullest = max(known, key=lambda x: x["peak_bytes_in_use"] / x["bytes_limit"])
    peak, limit = fullest["peak_bytes_in_use"], fullest["bytes_limit"]
    seen = f"{peak / 1e9:.1f} of {limit / 1e9:.1f} GB at most"
    if peak <= 0.9 * limit:
        return [Row(OK, "memory", seen)]
    return [Row(WARNING, "memory", seen, "it is close: docs/performance.md#when-it-does-not-fit")]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Returns (seconds, result) of a call, including its asynchronous work on the devices."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began, result
