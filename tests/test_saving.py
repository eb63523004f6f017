"""Saves that fail: told, tried again, and not for ever."""

import contextlib
import errno

import orbax.checkpoint as ocp
import pytest

from mae_jax import checkpoint, saving, train
from mae_jax.checkpoint import SaveFailed
from mae_jax.errors import RunError
from mae_jax.saving import Saving
from mae_jax.tasks.pretrain import Pretrain
from tests import tiny


class Saver:
    """Stands for a Checkpointer whose first saves fail, so many of them."""

    def __init__(self, bad):
        self.bad, self.saved, self.open = bad, [], None

    def save(self, state, metadata):
        self.bad -= 1
        self.open = SaveFailed("disk full") if self.bad >= 0 else None
        if self.open is None:
            self.saved.append(state)

    def failure(self):
        failure, self.open = self.open, None
        return failure

    def wait(self):
        if failure := self.failure():
            raise failure

    def latest_step(self):
        return max(self.saved, default=None)


def options(**changes):
    return tiny.config(**{f"checkpoint__{k}": v for k, v in changes.items()}).checkpoint


def test_a_failed_save_is_made_again_after_the_next_step():
    saver = Saver(bad=2)
    runs = Saving(saver, options(every_steps=10), check_every=50)
    for step in range(1, 25):
        if runs.due(step):
            runs.save(step, {})
    assert saver.saved == [12, 20]  # 10 and 11 failed


def test_too_many_failures_in_a_row_end_the_run():
    saver = Saver(bad=2)
    runs = Saving(saver, options(every_steps=1, max_failures=3), check_every=50)
    for step in range(1, 5):
        runs.due(step)
        runs.save(step, {})
    assert saver.saved == [3, 4]
    saver.bad = 9  # a new row: the first two do not count any more
    with pytest.raises(RunError, match=r"3 saves in a row failed \(disk full\); checkpoint 4 is"):
        for step in range(5, 9):
            runs.due(step)
            runs.save(step, {})
    assert step == 8


@pytest.mark.parametrize("bad", [2, 9])
def test_the_last_save_is_waited_for_and_made_again(monkeypatch, bad):
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0)
    saver = Saver(bad)
    runs = Saving(saver, options(max_failures=3), check_every=50)
    runs.save(7, {})
    refused = pytest.raises(RunError, match="nothing was saved")
    with refused if bad > 3 else contextlib.nullcontext():
        runs.finish(lambda: runs.save(7, {}))
    assert saver.saved == ([] if bad > 3 else [7])


def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0)
    save, full = ocp.AsyncCheckpointer.save, {2, 3, 6, 7, 8}

    def sometimes(self, directory, *args, **kwargs):
        if int(directory.name) in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, directory, *args, **kwargs)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", sometimes)
    config = tiny.config(steps=8, checkpoint__every_steps=2, checkpoint__max_failures=3)
    with pytest.raises(RunError, match="No space left .*; checkpoint 4 is there. Mend the cause"):
        train.run(Pretrain(config, str(tmp_path)), config, str(tmp_path))
    assert "No space left" in caplog.text and "tried again (failure 1 of 3)" in caplog.text
    assert checkpoint.find(str(tmp_path)).step == 4
    full.clear()
    assert train.run(Pretrain(config, str(tmp_path)), config, str(tmp_path))
    assert checkpoint.find(str(tmp_path)).step == 8
