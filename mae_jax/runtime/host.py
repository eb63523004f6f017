"""The memory of the machine that a process runs on: what is left, and how to keep hold of it."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# glibc's malloc.h: parameter, value.
_SETTINGS = (
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
    (-4, 0),  # M_MMAP_MAX: large arrays come from the heap too
    (-1, -1),  # M_TRIM_THRESHOLD: never shrink it
    (-2, 2**28),  # M_TOP_PAD: grow it by 256 MB at a time
)
processes = 1  # of this run on this host; set when they have connected


def keep_freed_memory() -> bool:
    """Lets freed memory be used again without a page fault; True if the C library has that.

    XLA's CPU backend allocates every step's temporaries anew. With glibc's defaults they go back to
    the kernel each time, and faulting them in again costs up to half of a step. For a process that
    computes on CPU, before it computes: the memory it once used stays with it.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that could still be taken on this host, and in the control groups of this process.

    Args:
      root: of the file system.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = root / "proc/meminfo"
    if meminfo.exists():  # Linux; elsewhere all of the memory counts
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    left = (_left(group, version) for group, version in _control_groups(root))
    return max(min([free, *(x for x in left if x is not None)]), 0)


class _Version(NamedTuple):
    """How a version of control groups calls things."""

    place: str
    limit: str
    used: str
    cache: str


_VERSIONS = {
    1: _Version(
        *("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
    2: _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}


def _control_groups(root: Path) -> Iterator[tuple[Path, _Version]]:
    """The memory groups of this process and all around them: each may have a limit.

    Slurm and systemd limit groups far below the topmost one; inside a container the topmost may be
    its own.
    """
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else []:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        version = _VERSIONS[2 if number == "0" else 1]
        top = root / version.place
        group = top / os.path.normpath(path).lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield folder, version


def _left(group: Path, version: _Version) -> int | None:
    """Bytes left in a control group; None where it has no limit."""
    try:
        limit = (group / version.limit).read_text().strip()
        used = int((group / version.used).read_text())
    except OSError:  # the topmost group has no limit; a container does not see those around it
        return None
    if limit == "max":
        return None
    # `used` includes cached file contents, which the kernel drops when memory runs short.
    return int(limit) - used + _cached(group / "memory.stat", version.cache)


def _cached(stat: Path, name: str) -> int:
    lines = stat.read_text().splitlines() if stat.exists() else []
    return int(dict(line.split() for line in lines).get(name, 0))


def usable_cpus() -> int:
    """Number of CPUs this process may run on; all of them where the system has no such limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(amount: int) -> int:
    """This process's part of something that all processes of the run on this host use."""
    return amount // processes
