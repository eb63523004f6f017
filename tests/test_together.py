"""What process 0 makes is what two real processes have; what stops it stops both."""

import numpy as np
import pytest

from mae_jax import together
from mae_jax.errors import UsageError
from tests.processes import run_two

CHILD = """
import sys
import jax
import numpy as np
from mae_jax import together
from mae_jax.errors import UsageError

address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
like = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.float32)}

def work():
    assert index == 0
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "b": np.float32([-1e-30])}

def fail():
    assert index == 0
    raise UsageError("no images")

found = together.arrays_of_first(work, like)
print("found", {name: x.tolist() for name, x in sorted(found.items())})
try:
    together.arrays_of_first(fail, like)
except UsageError as error:
    print("error", error)
"""


def test_arrays_of_process_0_are_those_of_both():
    results = run_two(CHILD, [[], []])
    assert [status for status, _, _ in results] == [0, 0], results
    (_, first, _), (_, second, _) = results
    expected = {
        "a": (np.arange(6, dtype=np.float32).reshape(2, 3) / 7).tolist(),
        "b": np.float32([-1e-30]).tolist(),
    }
    lines = [[x for x in out.splitlines() if x[0] in "fe"] for out in (first, second)]
    other = "error process 0 stopped: see what it printed last"
    assert lines[0] == [f"found {expected}", "error no images"]
    assert lines[1] == [f"found {expected}", other]


def test_one_process_has_what_it_makes():
    made = {"a": np.ones(3)}
    assert together.arrays_of_first(lambda: made, {}) is made
    with pytest.raises(ZeroDivisionError):
        together.arrays_of_first(lambda: 1 / 0, {})
    with pytest.raises(UsageError, match="no images"):
        together.arrays_of_first(_fail, {})


def _fail():
    raise UsageError("no images")
