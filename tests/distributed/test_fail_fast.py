"""If one of two real processes fails, the other ends too and names it."""

import os
import socket

import pytest

from mae_jax.checkpoint import layout
from mae_jax.distributed import fail_fast
from mae_jax.runtime import workdir_lock
from tests.helpers import tiny_configs
from tests.helpers.processes import run_two

# Its arguments: coordinator, index, which process fails, how.
CHILD = """
import os, sys, time
import jax
from mae_jax.runtime import errors
from mae_jax.distributed import fail_fast
from mae_jax.runtime import abort
from mae_jax.runtime.cli import setup_logging

address, index, fails, how = sys.argv[1:]
setup_logging()
jax.distributed.initialize(address, 2, int(index))
with fail_fast.abort_all_on_error():
    jax.numpy.ones(3).sum().block_until_ready()
    if index != fails:
        if how in ("wait", "leave"):
            time.sleep(100)  # like compiled code that nothing can interrupt
        if how == "break":
            time.sleep(0.3)
            raise ConnectionResetError("the other one is gone")
    elif how == "leave":  # as the watchdog does when the main thread hangs
        abort.abort(70, "it hangs")
    elif how == "wait":
        raise errors.UsageError("no images\\nand more")
    elif how == "break":
        raise KeyError("a bug")
print("done")
"""


def run_both(fails, how):
    """(status, output) of both; jax's heartbeat, a hundred seconds later, would abort them."""
    ended = run_two(CHILD, [[str(fails), how]] * 2)
    return [(status, out + err) for status, out, err in ended]


@pytest.mark.parametrize(
    "fails, how, status, why",
    [(0, "wait", 2, "no images"), (1, "wait", 2, "no images"), (0, "leave", 70, "it hangs")],
)
def test_the_one_that_waits_ends_and_names_the_one_that_failed(fails, how, status, why):
    for index, (found, output) in enumerate(run_both(fails, how)):
        assert found == status, output
        named = f"process {fails} ({socket.gethostname()}) failed: {why}\n" in output
        assert named or (how, index) == ("leave", fails)
        assert "Traceback" not in output and "done" not in output


def test_what_breaks_because_another_is_gone_is_not_the_reason():
    ended = run_both(1, "break")
    for status, output in ended:
        assert status == 1
        assert "process 1 (" in output and "failed: 'a bug'" in output
        assert "is gone" not in output
    assert "Traceback" in ended[1][1] and "Traceback" not in ended[0][1]  # a bug


def test_nothing_happens_where_nothing_fails():
    ended = run_both(0, "nothing")
    assert [(status, output) for status, output in ended] == [(0, "done\n")] * 2


def test_a_process_that_is_alone_lets_exceptions_pass(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda _: pytest.fail("ended"))
    with pytest.raises(KeyError), fail_fast.abort_all_on_error():
        raise KeyError("x")


# Its arguments: coordinator, index, flags. In process 1 the third step fails.
TRAINS = """
import functools
import sys

address, index, *words = sys.argv[1:]
several = [f"--coordinator={address}", "--num_processes=2", f"--process_id={index}"]
sys.argv = ["main", *words, *several]
from mae_jax import main
from mae_jax.train import loop
from mae_jax.runtime.cli import run_command
from mae_jax.runtime.errors import UsageError

def fail(step):
    if step == 3:
        raise UsageError("all images are bad")

if index == "1":
    loop.run = functools.partial(loop.run, before_step=fail)
sys.exit(run_command(main.main))
"""


def test_a_run_ends_everywhere_with_the_status_of_the_process_that_failed(tmp_path):
    flags = tiny_configs.flags(steps=10, log_every=1, checkpoint__every_steps=2)
    ended = run_two(TRAINS, [[*flags, f"--workdir={tmp_path}/w"]] * 2)
    for status, _, errors in ended:
        assert status == 2, errors
        assert f"process 1 ({socket.gethostname()}) failed: all images are bad\n" in errors
        assert "Traceback" not in errors
    assert not os.path.exists(tmp_path / "w" / workdir_lock.LOCK)
    assert layout.find(str(tmp_path / "w")).step == 2  # the save in progress was completed
