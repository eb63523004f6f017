"""Failed saves: reported, retried, and limited in number."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading

import orbax.checkpoint as ocp
import pytest

from mae_jax.checkpoint import checkpointer, layout
from mae_jax.checkpoint.writer import SaveFailed
from mae_jax.runtime import disk, preemption
from mae_jax.runtime.errors import RunError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop, save_policy
from mae_jax.train.save_policy import SavePolicy
from tests.checkpoint.test_checkpointer import make_state
from tests.helpers import tiny_configs


class Saver:
    """A fake Checkpointer whose first `bad` saves fail."""

    def __init__(self, bad):
        self.bad, self.saved, self.open = bad, [], None

    def save(self, state, metadata):
        self.bad -= 1
        self.open = SaveFailed("disk full") if self.bad >= 0 else None
        if self.open is None:
            self.saved.append(state)

    def pop_error(self):
        failure, self.open = self.open, None
        return failure

    def wait(self):
        if failure := self.pop_error():
            raise failure

    def latest_step(self):
        return max(self.saved, default=None)


def options(**changes):
    return tiny_configs.config(**{f"checkpoint__{k}": v for k, v in changes.items()}).checkpoint


class Clock:
    """Fake time that passes only by sleeping, or one second per step."""

    def __init__(self, monkeypatch):
        self.now, self.slept = 1000.0, []
        monkeypatch.setattr(save_policy.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(preemption.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def make(saver, stop=None, **changes):
    stop = stop or preemption.StopRequest()
    return SavePolicy(saver, options(**changes), check_every=50, stop=stop)


def test_failed_saves_are_made_again_by_time_and_not_at_every_step(clock):
    saver, tries = Saver(bad=4), []
    runs = make(saver, every_steps=1)
    for step in range(1, 200):
        clock.now += 1
        if runs.should_save(step):
            tries.append(step)
            runs.save(step, {})
    assert tries[:5] == [1, 12, 33, 74, 155]  # 10, 20, 40 and 80 s after a failure was noticed
    assert saver.saved == tries[4:] == list(range(155, 200))


def test_pauses_stop_growing(clock):
    saver, tries = Saver(bad=99), []
    runs = make(saver, every_steps=1, max_failures=12)
    with pytest.raises(RunError, match="12 saves in a row failed"):
        for step in range(1, 10000):
            clock.now += 1
            if runs.should_save(step):
                tries.append(clock.now)
                runs.save(step, {})
    pauses = [round(b - a) - 1 for a, b in zip(tries, tries[1:], strict=False)]
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600, 600, 600]


def test_too_many_failures_in_a_row_end_the_run(clock):
    saver = Saver(bad=2)
    runs = make(saver, every_steps=1, max_failures=3)
    for step in range(1, 7):
        clock.now += 60
        if runs.should_save(step):
            runs.save(step, {})
    assert saver.saved == [5, 6]  # 1 and 3 failed, as the step after each noticed
    saver.bad = 9  # the count starts over: the first two no longer count
    with pytest.raises(
        RunError, match=r"3 saves in a row failed \(disk full\); checkpoint 6 is intact"
    ):
        for step in range(7, 20):
            clock.now += 60
            if runs.should_save(step):
                runs.save(step, {})
    assert step == 12


@pytest.mark.parametrize("bad", [2, 9])
def test_the_last_save_is_waited_for_and_made_again(clock, bad):
    saver = Saver(bad)
    runs = make(saver, max_failures=3)
    runs.save(7, {})
    refused = pytest.raises(RunError, match="nothing was saved")
    with refused if bad > 3 else contextlib.nullcontext():
        runs.save_final(lambda: runs.save(7, {}))
    assert saver.saved == ([] if bad > 3 else [7])
    assert sum(clock.slept) == 30  # 10, then 20 s


def test_a_run_that_is_to_stop_gets_all_tries_and_short_pauses(clock):
    saver, stop = Saver(bad=99), preemption.StopRequest()
    runs = make(saver, stop, every_steps=1, max_failures=6)
    for step in range(1, 200):
        clock.now += 1
        if runs.should_save(step):
            runs.save(step, {})
    stop._requested = True
    runs.save(200, {})
    with pytest.raises(RunError, match="6 saves in a row failed"):
        runs.save_final(lambda: runs.save(200, {}))
    assert sum(clock.slept) == 10 + 20 + 30 + 30 + 30


def test_a_request_to_stop_ends_the_pause_before_the_last_save(clock, monkeypatch):
    saver, stop = Saver(bad=6), preemption.StopRequest()
    runs = make(saver, stop)
    runs.save(7, {})
    real = clock.sleep

    def sleep(seconds):
        real(seconds)
        if sum(clock.slept) == 10 + 20 + 40 + 80 + 7:  # in the fifth pause, of 160 s
            stop._requested = True

    monkeypatch.setattr(preemption.time, "sleep", sleep)
    runs.save_final(lambda: runs.save(7, {}))
    assert saver.saved == [7]
    assert sum(clock.slept) == 157 + 30  # tried at once, and once more after a short pause


def test_a_disk_that_cannot_even_be_listed_ends_no_run(clock, caplog):
    saver = Saver(bad=1)
    runs = make(saver, every_steps=10)

    def broken():
        raise OSError(errno.EIO, "Input/output error")

    saver.latest_step = broken
    runs.save(10, {})
    assert not runs.should_save(11) and "failure 1 of" in caplog.text
    assert runs.newest() is None


def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(save_policy, "FIRST_PAUSE", 0.0)
    save, full = ocp.AsyncCheckpointer.save, {2, 3, 6, 7, 8}

    def sometimes(self, directory, *args, **kwargs):
        if int(directory.name) in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, directory, *args, **kwargs)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", sometimes)
    config = tiny_configs.config(steps=8, checkpoint__every_steps=2, checkpoint__max_failures=3)
    with pytest.raises(RunError, match="No space left .*; checkpoint 4 is intact. Fix the problem"):
        loop.run(Pretrain(config, str(tmp_path)), config, str(tmp_path))
    assert "No space left" in caplog.text and "next attempt in 0 s (failure 1 of 3)" in caplog.text
    assert layout.find(str(tmp_path)).step == 4
    full.clear()
    assert loop.run(Pretrain(config, str(tmp_path)), config, str(tmp_path))
    assert layout.find(str(tmp_path)).step == 8


# A limit on file sizes acts like a disk that fails in the middle of a write, and needs no root.
REFUSED = """
import resource, signal, sys, threading
from mae_jax.checkpoint import checkpointer, writer
from mae_jax.runtime import cli
from tests.checkpoint.test_checkpointer import make_state
cli.setup_logging()
# The background thread would race with the first line.
printed, finish = threading.Event(), writer.StepWriter._finish
writer.StepWriter._finish = lambda self, then: printed.wait() and finish(self, then)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
saver = checkpointer.Checkpointer(sys.argv[1])
for step in range(1, 6):
    printed.clear()
    saver.save(make_state(step), {"step": step})
    print(saver._error or saver._writer.error or "")
    printed.set()
    try:
        saver.wait()
    except writer.SaveFailed as error:
        print(error)
    print(sum("metadata_store" in thread.name for thread in threading.enumerate()))
    sys.stdout.flush()
"""


def test_failed_saves_are_one_line_each_and_leave_nothing_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(tmp_path)],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    mount = disk.mount_of(str(tmp_path))
    for step, lines in enumerate(zip(*[iter(done.stdout.splitlines())] * 3, strict=True), 1):
        failed = f"checkpoint {step} is not saved: File too large (disk {mount})"
        assert lines == ("", failed, "0")


def test_what_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", None)  # not called
    saver = checkpointer.Checkpointer(str(tmp_path))
    saver.save(make_state(1), {"step": 1})
    with pytest.raises(SaveFailed, match=r"No space left .*: 10.0 kB free, 32.8 kB needed"):
        saver.wait()
    saver.close()


def test_the_writer_of_a_save_that_could_not_begin_is_closed(tmp_path, monkeypatch):
    closed, close = threading.Event(), ocp.AsyncCheckpointer.close

    def spy(self):
        close(self)
        closed.set()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", full)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "close", spy)
    saver = checkpointer.Checkpointer(str(tmp_path))
    saver.save(make_state(1), {"step": 1})
    assert closed.wait(60)
    assert "No space left on device" in str(saver.pop_error())
