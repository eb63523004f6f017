"""One of two real processes fails: the other ends too, and says who it was."""

import os
import socket
import time

import pytest

from mae_jax import failing
from tests.processes import run_two

# Its arguments: coordinator, index, which process fails, how.
CHILD = """
import os, sys, time
import jax
from mae_jax import errors, failing
from mae_jax.console import setup_logging

address, index, fails, how = sys.argv[1:]
setup_logging()
jax.distributed.initialize(address, 2, int(index))
with failing.ends_all():
    jax.numpy.ones(3).sum().block_until_ready()
    if index != fails:
        if how == "wait":
            time.sleep(100)  # as in compiled code, from which nothing brings it back
        if how == "break":
            time.sleep(0.3)
            raise ConnectionResetError("the other one is gone")
    elif how == "wait":
        raise errors.UsageError("no images\\nand more")
    elif how == "break":
        raise KeyError("a bug")
print("done")
"""


def run_both(fails, how):
    """(status, output) of both, and the seconds until both had ended."""
    began = time.monotonic()
    ended = run_two(CHILD, [[str(fails), how]] * 2, timeout=90)
    return [(status, out + err) for status, out, err in ended], time.monotonic() - began


@pytest.mark.parametrize("fails", [0, 1])
def test_the_one_that_waits_ends_and_names_the_one_that_failed(fails):
    ended, seconds = run_both(fails, "wait")
    for status, output in ended:
        assert status == failing.FAILED, output
        assert f"process {fails} ({socket.gethostname()}) failed: no images\n" in output
        assert "Traceback" not in output and "done" not in output
    assert seconds < 40  # a heartbeat of jax takes 100


def test_what_breaks_because_another_is_gone_is_not_the_reason():
    ended, _ = run_both(1, "break")
    for status, output in ended:
        assert status == failing.FAILED
        assert "process 1 (" in output and "failed: 'a bug'" in output
        assert "is gone" not in output
    assert "Traceback" in ended[1][1] and "Traceback" not in ended[0][1]  # it is a bug of ours


def test_nothing_happens_where_nothing_fails():
    ended, _ = run_both(0, "nothing")
    assert [(status, output) for status, output in ended] == [(0, "done\n")] * 2


def test_a_process_that_is_alone_lets_exceptions_pass(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda _: pytest.fail("ended"))
    with pytest.raises(KeyError), failing.ends_all():
        raise KeyError("x")
