"""CPUs and memory of the host, and this process's share of them."""

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
processes = 1  # processes of this run on this host; set once they are connected


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory instead of returning it to the kernel.

    XLA's CPU backend allocates the temporaries of every step again. With glibc's defaults they
    return to the kernel each time, and the page faults cost up to half of a step. Call it before
    the first computation of a process that computes on CPU. The process never shrinks afterwards.

    Returns:
      Whether the C library supports this.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory available on this host, within the control groups of this process.

    Args:
      root: root of the file system; for tests.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = root / "proc/meminfo"
    if meminfo.exists():  # Linux; elsewhere assume that all memory is free
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    left = (_left(group, version) for group, version in _control_groups(root))
    return max(min([free, *(x for x in left if x is not None)]), 0)


class _Version(NamedTuple):
    """File names in a version of control groups."""

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
    """The memory groups of this process and all their parents: each may have a limit.

    Slurm and systemd limit groups far below the root; inside a container, the root may be the
    container's own group.
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
    """Bytes left in a control group; None if it has no limit."""
    try:
        limit = (group / version.limit).read_text().strip()
        used = int((group / version.used).read_text())
    except OSError:  # the root has no limit; a container does not see the groups outside
        return None
    if limit == "max":
        return None
    # `used` includes cached file contents, which the kernel drops when memory runs short.
    return int(limit) - used + _cached(group / "memory.stat", version.cache)


def _cached(stat: Path, name: str) -> int:
    lines = stat.read_text().splitlines() if stat.exists() else []
    return int(dict(line.split() for line in lines).get(name, 0))


def usable_cpus() -> int:
    """Number of CPUs this process may run on; all if the system has no such limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(amount: int) -> int:
    """This process's share of something that all processes of the run on this host use."""
    return amount // processes
