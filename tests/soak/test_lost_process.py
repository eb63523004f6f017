"""One of two processes is killed, in the middle of a save: the other does not wait for ever."""

import os
import random
import time

import pytest

from mae_jax.checkpoint import layout
from tests.e2e.test_main import finish, start_two
from tests.helpers import tiny_configs

STEPS = 40


def writes(folder):
    """Whether a checkpoint is half written."""
    return os.path.isdir(folder) and any("tmp" in name for name in os.listdir(folder))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_killed_in_a_save_ends_the_other_and_loses_nothing(tmp_path, lost):
    """The other notices by jax's heartbeat, which takes up to a hundred seconds."""
    flags = tiny_configs.flags(steps=STEPS, log_every=1, checkpoint__every_steps=1)
    for process in start_two([*flags, "--workdir=whole"], tmp_path):
        status, output = finish(process)
        assert status == 0, output
    flags.append("--workdir=w")
    folder, times = tmp_path / "w" / "checkpoints", random.Random(lost)
    for wanted in (5, 15):
        run = start_two(flags, tmp_path)
        for line in run[0].stdout:
            if f" step {wanted}/" in line:
                break
        time.sleep(times.uniform(0, 0.2))
        while not writes(folder):
            time.sleep(0.001)
        run[lost].kill()
        began = time.monotonic()
        status, output = finish(run[1 - lost])
        assert status not in (0, 75), output
        assert time.monotonic() - began < 200
        found = layout.find(str(tmp_path / "w"))
        assert found and wanted - 2 <= found.step < STEPS
        run[lost].communicate()
    for process in start_two(flags, tmp_path):
        status, output = finish(process)
        assert status == 0, output
    assert tiny_configs.metric_lines(tmp_path / "w") == tiny_configs.metric_lines(
        tmp_path / "whole"
    )
