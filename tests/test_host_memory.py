"""Memory that is freed and used again costs no page fault."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from mae_jax.host_memory import keep_freed_memory

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
