"""Kills a run again and again, then compares its end with that of a run that was left alone.

python -m tests.soak.kill --kills 100 [--workdir DIR]
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

EVERY = 5  # steps between two checkpoints
PACE = 0.02  # seconds that a step takes at least, so that kills fall anywhere


class Report(NamedTuple):
    """What came of it.

    Attributes:
      kills: how often a process was killed.
      in_saves: how often while a checkpoint was half written.
      most_repeated: largest number of steps that one kill cost.
    """

    kills: int
    in_saves: int
    most_repeated: int


def soak(workdir: str, *, kills: int, steps: int, seed: int = 0) -> Report:
    """Runs to the end under `kills` kills; raises AssertionError if anything is lost or differs.

    Args:
      workdir: empty folder; gets `whole` and `killed`.
      kills: how many processes are killed, by turns at a random time and in the middle of a save.
      steps: length of the run; the kills are spread over it.
      seed: of the times.
    """
    context = multiprocessing.get_context("forkserver")  # imports are paid for once
    context.set_forkserver_preload(
        ["mae_jax.train.loop", "mae_jax.tasks", "tests.helpers.tiny_configs"]
    )
    whole, killed = (os.path.join(workdir, name) for name in ("whole", "killed"))
    _end(context, whole, steps)
    random_times, in_saves, most = random.Random(seed), 0, 0
    for kill in range(kills):
        process = _start(context, killed, steps)
        goal = min(_logged(killed) + steps // (kills + 1), steps - 1)
        in_saves += _kill(process, killed, goal, random_times, in_save=kill % 2 == 1)
        done, newest = _logged(killed), max(_saved(killed), default=0)
        most = max(most, done - newest)
        # One interval, and what was done while the save under way was not yet complete.
        assert done - newest <= 2 * EVERY, f"{done - newest} steps lost, saving every {EVERY}"
    _end(context, killed, steps)
    _assert_equal(whole, killed, steps)
    return Report(kills, in_saves, most)


def _train(workdir: str, steps: int) -> None:
    """Body of a process: the run as main does it, one step at a time."""
    from mae_jax.tasks.pretrain import Pretrain
    from mae_jax.train import loop
    from tests.helpers import tiny_configs

    jax.config.update("jax_compilation_cache_dir", os.path.join(os.path.dirname(workdir), "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config = tiny_configs.config(steps=steps, log_every=1, checkpoint__every_steps=EVERY)
    task = Pretrain(config, workdir)
    assert loop.run(task, config, workdir, before_step=lambda _: time.sleep(PACE))


def _start(context: Any, workdir: str, steps: int) -> Any:
    process = context.Process(target=_train, args=(workdir, steps))
    process.start()
    return process


def _end(context: Any, workdir: str, steps: int) -> None:
    process = _start(context, workdir, steps)
    process.join()
    assert process.exitcode == 0, f"exit status {process.exitcode}"


def _kill(process: Any, workdir: str, goal: int, times: random.Random, *, in_save: bool) -> bool:
    """Kills the process after step `goal`; returns whether that was in the middle of a save."""
    while _logged(workdir) < goal:
        assert process.is_alive(), f"exit status {process.exitcode} before it was killed"
        time.sleep(0.002)
    deadline = time.monotonic() + 20
    if in_save:
        while not _half_written(workdir) and time.monotonic() < deadline:
            time.sleep(0.0002)
    else:
        time.sleep(times.uniform(0, 2 * EVERY * PACE))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"exit status {process.exitcode}"
    return bool(_half_written(workdir))


def _logged(workdir: str) -> int:
    """Newest step in the metrics."""
    try:
        with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
            lines = [line for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def _names(workdir: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(os.path.join(workdir, "checkpoints"))
    return []


def _saved(workdir: str) -> list[int]:
    return [int(name) for name in _names(workdir) if name.isdigit()]


def _half_written(workdir: str) -> list[str]:
    return [name for name in _names(workdir) if "tmp" in name]


def _assert_equal(whole: str, killed: str, steps: int) -> None:
    """The same metrics, line for line, and the same parameters and moments, bit for bit."""
    from mae_jax.checkpoint import reader
    from tests.helpers import tiny_configs

    lines, expected = tiny_configs.metric_lines(killed), tiny_configs.metric_lines(whole)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines == expected
    parts = ("params", "opt_state")
    a, b = (reader.load_arrays(run, parts) for run in (whole, killed))
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workdir", default="", help="an empty folder; default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        report = soak(
            options.workdir or folder, kills=options.kills, steps=20 * (options.kills + 1)
        )
        print(f"{report} in {time.monotonic() - began:.0f} s: the end is equal, bit for bit")


if __name__ == "__main__":
    main()
