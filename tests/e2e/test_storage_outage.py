"""Runs whose data folder is moved away: for a moment, for too long, until a signal comes."""

import os
import shutil
import threading
import time

import pytest

from mae_jax.checkpoint import layout
from mae_jax.data import storage
from mae_jax.runtime.errors import StorageUnavailable, UsageError
from mae_jax.runtime.preemption import StopRequest
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop, reading_errors
from tests.data.helpers import jpeg, picture
from tests.e2e.test_main import finish, start_two
from tests.helpers import tiny_configs

AWAY_AT = 3  # step; some later batches are read by then


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "data"
    for name, count in (("train", 40), ("val", 8)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:02}.jpg").write_bytes(jpeg(picture(i)))
    return root


@pytest.fixture(autouse=True)
def restored(data):
    """Restores the data even if a test fails."""
    yield
    for folder in (data, data / "val"):
        if os.path.exists(f"{folder}.away"):
            move_back(folder)


def config(data, **changes):
    more = {"steps": 24, "batch_size": 8, "log_every": 1, "eval_every": 24}
    return tiny_configs.config(data__source="folder", data__root=str(data), **more | changes)


def run(workdir, config, **options):
    return loop.run(Pretrain(config, str(workdir)), config, str(workdir), **options)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(folder, config(data))
    return lines(folder)


def lines(folder):
    return [tiny_configs.metric_lines(folder, split) for split in ("train", "eval")]


def move_away(folder, step=AWAY_AT, then=lambda: None):
    """A `before_step` that moves a folder away."""

    def before_step(now):
        if now == step:
            os.rename(folder, f"{folder}.away")
            then()

    return before_step


def move_back(folder):
    os.rename(f"{folder}.away", folder)


def test_an_outage_changes_nothing(data, undisturbed, tmp_path):
    back = threading.Timer(0.5, move_back, [data])
    assert run(tmp_path, config(data), before_step=move_away(data, then=back.start))
    assert lines(tmp_path) == undisturbed


@pytest.mark.parametrize("part, step", [("", AWAY_AT), ("val", 20)])
def test_a_run_saves_before_it_gives_up_and_then_continues(part, step, data, undisturbed, tmp_path):
    folder = data / part if part else data
    away = move_away(folder, step)
    with pytest.raises(StorageUnavailable, match="did not come back within 0 s: .*jpg"):
        run(tmp_path, config(data, data__storage_wait=0.4), before_step=away)
    move_back(folder)
    saved, last = layout.find(str(tmp_path)).step, lines(tmp_path)[0][-1]["step"]
    assert step <= saved == last
    assert (saved == 24) == (part == "val")  # only the last evaluation was missing
    assert [line["step"] for line in lines(tmp_path)[1]] == [0]
    assert run(tmp_path, config(data))
    assert lines(tmp_path) == undisturbed


class Starvation(threading.Thread):
    """Requests a stop once the run has used all batches that were read and waits for more.

    Earlier, the stop would end the run between two steps, with no error at all.
    """

    def __init__(self, stop, quiet=2.0):
        super().__init__(daemon=True)
        self._stop_request, self._quiet = stop, quiet
        self.last_step = time.monotonic()

    def run(self):
        while not storage.is_waited_for() or time.monotonic() - self.last_step < self._quiet:
            time.sleep(0.05)
        self._stop_request._requested = True


def test_a_signal_ends_the_wait_and_the_step_is_saved(data, undisturbed, tmp_path):
    stop = StopRequest()
    starvation = Starvation(stop)
    away = move_away(data, then=starvation.start)

    def before_step(now):
        starvation.last_step = time.monotonic()
        away(now)

    began = time.monotonic()
    with pytest.raises(StorageUnavailable, match="stopped while waiting for storage"):
        run(tmp_path, config(data), stop=stop, before_step=before_step)
    assert time.monotonic() - began < 100  # of 300
    move_back(data)
    assert layout.find(str(tmp_path)).step == lines(tmp_path)[0][-1]["step"] < 24
    assert run(tmp_path, config(data))
    assert lines(tmp_path) == undisturbed


def test_a_read_that_hangs_does_not_keep_a_signal_from_saving(data, tmp_path, monkeypatch):
    """As with a `hard` mount: no error, and the call never returns."""
    stop, over = StopRequest(), threading.Event()

    def hang(self, indices):
        stop._requested = True
        assert over.wait(100)
        raise OSError(5, "was hanging")

    def before_step(now):
        if now == AWAY_AT:
            monkeypatch.setattr("mae_jax.data.sources.folder.FolderSource.read", hang)

    def raise_on_all_hosts(error):  # called after the save
        over.set()
        assert error is None

    monkeypatch.setattr(reading_errors, "raise_on_all_hosts", raise_on_all_hosts)
    assert not run(tmp_path, config(data), stop=stop, before_step=before_step)
    assert layout.find(str(tmp_path)).step >= AWAY_AT


def test_bad_images_end_a_run_after_a_save(data, tmp_path, monkeypatch):
    def spoil(now):
        if now == AWAY_AT:
            decode = "mae_jax.data.loader.Loader.decode"
            monkeypatch.setattr(decode, lambda *_: (_ for _ in ()).throw(ValueError("broken")))

    with pytest.raises(UsageError, match="cannot be (used|read)"):
        run(tmp_path, config(data), before_step=spoil)
    assert layout.find(str(tmp_path)).step == lines(tmp_path)[0][-1]["step"] >= AWAY_AT


@pytest.mark.slow
def test_two_processes_save_the_same_step_when_one_has_no_data(data, tmp_path):
    shutil.copytree(data, tmp_path / "1")
    changes = {"steps": 5000, "batch_size": 8, "log_every": 1, "data__storage_wait": 2.0}
    flags = tiny_configs.flags(data__source="folder", **changes)
    roots = [[f"--config.data.root={root}"] for root in (data, tmp_path / "1")]
    several = start_two([*flags, "--workdir=w"], tmp_path, own=roots)
    assert several[0].stdout is not None
    for line in several[0].stdout:
        if "step 3/" in line:
            os.rename(tmp_path / "1", tmp_path / "away")
            break
    (status, first), (other, second) = map(finish, several)
    assert (status, other) == (75, 75), first + second
    assert "process 1 could not read its data" in first
    assert "storage did not come back within 2 s" in second
    step = layout.find(str(tmp_path / "w")).step
    assert 3 <= step == lines(tmp_path / "w")[0][-1]["step"] < 5000
