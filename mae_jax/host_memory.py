"""The memory of the machine that a process runs on: what is left, and how to keep hold of it."""

import ctypes
import os
import sys
from pathlib import Path

# glibc's malloc.h: parameter, value.
_SETTINGS = (
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
    (-4, 0),  # M_MMAP_MAX: large arrays come from the heap too
    (-1, -1),  # M_TRIM_THRESHOLD: never shrink it
    (-2, 2**28),  # M_TOP_PAD: grow it by 256 MB at a time
)


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


def available_memory() -> int:
    """Bytes this process could still take: of the machine's and of its container's (cgroup 2)."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux; elsewhere all of the memory counts
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(free, 0)
