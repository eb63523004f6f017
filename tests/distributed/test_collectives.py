"""Values computed by process 0 reach two real processes; so do its errors."""

import numpy as np
import pytest

from mae_jax.checkpoint.layout import CheckpointPath
from mae_jax.distributed import collectives
from mae_jax.runtime.errors import UsageError
from tests.helpers.processes import run_two

CHILD = """
import sys
import jax
import numpy as np
from mae_jax.distributed import collectives
from mae_jax.checkpoint import reader

from mae_jax.runtime.errors import UsageError
from mae_jax.checkpoint.layout import CheckpointPath
from mae_jax.checkpoint.layout import NoSuchStep

address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
like = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.float32)}

def work():
    assert index == 0
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "b": np.float32([-1e-30])}

def fail():
    assert index == 0
    raise UsageError("no images")

print("bytes", collectives.all_gather_bytes([b"", b"a\\0b\\0"][index]))
found = collectives.broadcast_arrays(work, like)
print("found", {name: x.tolist() for name, x in sorted(found.items())})
try:
    collectives.broadcast_arrays(fail, like)
except UsageError as error:
    print("error", error)

# A run saves while both processes look, and deletes what one of them is reading.
reader.find = lambda path: CheckpointPath(f"{path}/checkpoints/{3 + index}", path, 3 + index)
print("one", reader.find_on_all_hosts("/run"))

def read():
    if index == 1:
        raise NoSuchStep("3 is not there")

try:
    reader.read_on_all_hosts("/run/checkpoints/3", read)
except NoSuchStep as error:
    print("gone", error)
"""


def test_arrays_of_process_0_are_those_of_both():
    results = run_two(CHILD, [[], []])
    assert [status for status, _, _ in results] == [0, 0], results
    (_, first, _), (_, second, _) = results
    expected = {
        "a": (np.arange(6, dtype=np.float32).reshape(2, 3) / 7).tolist(),
        "b": np.float32([-1e-30]).tolist(),
    }
    begin = ("bytes", "found", "error", "one", "gone")
    lines = [[x for x in out.splitlines() if x.startswith(begin)] for out in (first, second)]
    other = "error process 0 failed; see its log above"
    one = f"one {CheckpointPath('/run/checkpoints/3', '/run', 3)}"
    gone = "gone /run/checkpoints/3 no longer exists: another process could not read it"
    gathered = f"bytes {[b'', b'a' + bytes(1) + b'b' + bytes(1)]}"  # of different lengths
    assert lines[0] == [
        gathered,
        f"found {expected}",
        "error no images",
        one,
        f"{gone}: see its log above",
    ]
    assert lines[1] == [gathered, f"found {expected}", other, one, "gone 3 is not there"]


def test_one_process_has_what_it_makes():
    made = {"a": np.ones(3)}
    assert collectives.all_gather_bytes(b"x") == [b"x"]
    assert collectives.broadcast_arrays(lambda: made, {}) is made
    with pytest.raises(ZeroDivisionError):
        collectives.broadcast_arrays(lambda: 1 / 0, {})
    with pytest.raises(UsageError, match="no images"):
        collectives.broadcast_arrays(_fail, {})


def _fail():
    raise UsageError("no images")
