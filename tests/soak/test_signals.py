"""Signals at every stage of a run, of one process and two: it stops in good order and goes on."""

import re
import signal
import time

import pytest

from mae_jax.checkpoint import layout
from tests.e2e.test_main import finish, start, start_two
from tests.helpers import tiny_configs

STEPS = 32
# A line that is printed just before the stage; "" means soon after the program is started.
STAGES = {
    "starting": "",
    "compiling": r"versions  ",
    "step": r" step 3/",
    "evaluating": r" step 5/",
    "drawing": r"eval at step 5",
    "saving": r" step 6/",  # a checkpoint is written after every step
}


def wait_for(process, pattern):
    """Reads what is printed until a line matches."""
    if not pattern:
        return time.sleep(4)
    for line in process.stdout:
        if re.search(pattern, line):
            return None
    raise AssertionError(f"{pattern!r} was never printed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stops_in_good_order_at_any_stage(tmp_path, stage, processes, number):
    changes = {"checkpoint__every_steps": 1} if stage == "saving" else {}
    flags = tiny_configs.flags(
        steps=STEPS, log_every=1, eval_every=5, figure_every=5, data__num_eval=3000, **changes
    )
    flags.append("--workdir=w")
    run = [start(*flags, cwd=tmp_path)] if processes == 1 else start_two(flags, tmp_path)
    wait_for(run[0], STAGES[stage])
    # One of two processes is told, and both stop; before they know each other each is told.
    for process in run if stage == "starting" else run[-1:]:
        process.send_signal(number)
    for status, output in map(finish, run):
        assert status == 75, output
    lines = (
        tiny_configs.metric_lines(tmp_path / "w") if stage not in ("starting", "compiling") else []
    )
    if lines:
        assert layout.find(str(tmp_path / "w")).step == lines[-1]["step"] < STEPS
    status, output = finish(start(*flags, cwd=tmp_path, devices=processes))
    assert status == 0, output
    evaluated = [*range(0, STEPS, 5), STEPS]
    for split, wanted in {"train": range(1, STEPS + 1), "eval": evaluated}.items():
        found = [line["step"] for line in tiny_configs.metric_lines(tmp_path / "w", split)]
        assert found == list(wanted), split
