"""What this process may use of its host: CPUs, and its share of what all processes of a run use.

No jax here: commands that never import it ask too.
"""

import os

processes = 1  # of this run on this host; set when they have connected


def usable_cpus() -> int:
    """Number of CPUs this process may run on; all of them where the system has no such limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(amount: int) -> int:
    """This process's part of something that all processes of the run on this host use."""
    return amount // processes
