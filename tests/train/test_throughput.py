"""A run warns once if its input is the bottleneck; no test depends on real time."""

import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from mae_jax.data import prefetch
from mae_jax.data.prefetch import Prefetch
from mae_jax.distributed import sharding
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from mae_jax.train.throughput import InputBoundWarning
from tests.helpers import tiny_configs


def warns(*shares, steps=50):
    """Whether each window of 100 seconds causes a warning."""
    watch = InputBoundWarning(batch_size=64)
    lines = [watch.judge(waited=100 * share, total=100.0, steps=steps) for share in shares]
    return [line is not None for line in lines]


@pytest.mark.parametrize(
    "shares, expected",
    [
        ((0.9, 0.0, 0.2), (0, 0, 0)),  # the first window fills caches; 20 % are no bottleneck
        ((0.0, 0.21, 0.4, 0.3), (0, 1, 0, 0)),
        ((0.0, 0.3, 0.5, 0.51, 0.6, 0.72), (0, 1, 0, 1, 0, 1)),  # markedly worse each time
        ((0.0, 0.0, 0.1, 1.0, 1.0), (0, 0, 0, 1, 0)),
    ],
)
def test_says_it_once_and_again_when_it_gets_worse(shares, expected):
    assert warns(*shares) == [bool(x) for x in expected]


def test_the_line_names_shares_speeds_and_remedies():
    watch = InputBoundWarning(batch_size=64)
    assert watch.judge(waited=0.0, total=1.0, steps=20) is None
    line = watch.judge(waited=16.0, total=40.0, steps=50)
    assert line is not None and "\n" not in line
    assert "40% of the time" in line
    assert "delivers 80 images/s, the steps could use 133.3" in line  # 50 x 64 / 40, / (1 - 0.4)
    for flag in ("workers", "prefetch", "cache=encoded", "on_device=True"):
        assert f"--config.data.{flag}" in line
    assert "resize_antialias" not in line  # slower, since the usual resize is fast
    assert "python -m mae_jax.tools.bench data" in line


def test_windows_of_few_steps_are_put_together():
    watch = InputBoundWarning(batch_size=8)
    assert watch.judge(waited=0.0, total=1.0, steps=10) is None
    lines = [watch.judge(waited=x, total=1.0, steps=1) for x in (1.0, *[0.0] * 9)]
    assert lines == [None] * 10  # one step of ten waited: 10 %
    lines = [watch.judge(waited=x, total=1.0, steps=1) for x in (*[1.0] * 3, *[0.0] * 7)]
    assert lines[:9] == [None] * 9 and "30% of" in lines[9]


def test_waiting_counts_only_while_the_devices_have_nothing_to_do(monkeypatch):
    clock, polls, idle, arrived = [100.0], [], threading.Event(), threading.Event()

    def sleep(seconds):
        clock[0] += 10
        polls.append(seconds)

    def now():
        idle.set()
        return clock[0]

    def batches():
        idle.wait(10)
        clock[0] += 3  # how long it takes once the devices wait for it
        yield {"x": np.zeros(4, np.float32)}
        yield {"x": np.ones(4, np.float32)}
        arrived.set()
        yield {"x": np.ones(4, np.float32)}

    monkeypatch.setattr(prefetch, "time", SimpleNamespace(sleep=sleep, perf_counter=now))

    class Given:
        length, inner = 3, batches()

        def __next__(self):
            return next(self.inner)

    feed = Prefetch(Given(), sharding.make_mesh())
    batch, waited = feed.take(lambda: len(polls) < 5)  # busy for five polls
    assert len(polls) == 5 and waited == 3
    np.testing.assert_array_equal(batch["x"], 0)
    arrived.wait(10)  # the next one lies ready: whether the devices are busy is not asked
    batch, waited = feed.take(lambda: pytest.fail("asked"))
    assert waited == 0
    np.testing.assert_array_equal(batch["x"], 1)
    feed.close()


def test_a_run_warns_in_its_log(tmp_path, monkeypatch, caplog):
    take = Prefetch.take
    monkeypatch.setattr(Prefetch, "take", lambda self, busy: (take(self, busy)[0], 1e6))
    config = tiny_configs.config(steps=41, log_every=10)
    with caplog.at_level(logging.WARNING):
        loop.run(Pretrain(config, str(tmp_path)), config, str(tmp_path))
    lines = [r.getMessage() for r in caplog.records if "wait for data" in r.getMessage()]
    assert len(lines) == 1 and "--config.data.workers" in lines[0]
