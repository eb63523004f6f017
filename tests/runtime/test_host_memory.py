"""Reusing freed memory causes no page faults; limits of control groups are respected."""

import subprocess
import sys

import pytest

from mae_jax.runtime.host import available_memory

CODE = """
import resource, sys
import numpy as np
from mae_jax.runtime.host import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(6):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**23, np.float32) for _ in range(3)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", CODE, mode], text=True))
        for mode in ("keep", "default")
    }
    assert faults["keep"] < 0.1 * faults["default"]


GB = 10**9


def system(root, cgroup, files):
    """Available memory on a host with 64 GB free; `files`: path -> content."""
    free = f"MemAvailable: {64 * GB // 1024} kB\n"
    texts = files | {"proc/meminfo": free, "proc/self/cgroup": cgroup}
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(str(text))
    return available_memory(root)


def group(version, path, limit, used, cached=0):
    """The files of a control group."""
    top, names = {
        1: ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
        2: ("", ("memory.max", "memory.current", "inactive_file")),
    }[version]
    folder = f"sys/fs/cgroup/{top}/{path}".replace("//", "/").rstrip("/")
    return {
        f"{folder}/{names[0]}": limit,
        f"{folder}/{names[1]}": used,
        f"{folder}/memory.stat": f"anon 1\n{names[2]} {cached}\n",
    }


UNLIMITED = 2**63 - 4096  # how version 1 writes it
SLURM_1 = "9:memory:/slurm/uid_1/job_7/step_0\n8:cpuset:/slurm\n0::/\n"
SLURM_2 = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
POD = "0::/\n"


@pytest.mark.parametrize(
    "cgroup, groups, expected",
    [
        # The job is limited, the step is not; the root group of version 2 has no such file.
        (SLURM_1, group(1, "slurm/uid_1/job_7", 16 * GB, 4 * GB), 12),
        (SLURM_1, group(1, "slurm/uid_1/job_7/step_0", UNLIMITED, GB), 64),
        (SLURM_2, group(2, "system.slice/slurmstepd.scope/job_7", 16 * GB, 4 * GB), 12),
        (
            SLURM_2,
            group(2, "system.slice/slurmstepd.scope/job_7", 16 * GB, 4 * GB)
            | group(2, "system.slice/slurmstepd.scope/job_7/step_0", 8 * GB, GB)
            | group(2, "system.slice", "max", 40 * GB),
            7,
        ),
        # Cached files are dropped when memory is needed.
        (SLURM_2, group(2, "system.slice", 20 * GB, 20 * GB, cached=15 * GB), 15),
        # Inside a container, the root group is the container's own, and other paths do not exist.
        (POD, group(2, "", 10 * GB, GB), 9),
        ("4:memory:/docker/0123\n", group(1, "", 10 * GB, GB), 9),
        ("0::/../outside\n", group(2, "", 10 * GB, GB), 9),
        (SLURM_2, group(2, "system.slice", GB, 2 * GB), 0),
        (SLURM_2, {}, 64),
    ],
)
def test_the_smallest_limit_of_all_groups_around_counts(tmp_path, cgroup, groups, expected):
    assert system(tmp_path, cgroup, groups) // 10**6 * 10**6 == expected * GB


def test_without_control_groups_the_memory_of_the_host_counts():
    assert available_memory() > 0
