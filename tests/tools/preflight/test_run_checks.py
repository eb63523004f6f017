"""Checks of the run, each with the fault that it detects."""

import os
import shutil

import jax
import jax.numpy as jnp
import pytest

from mae_jax.distributed import sharding
from mae_jax.runtime import workdir, workdir_lock
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools.preflight import run as preflight
from mae_jax.tools.preflight import run_checks
from mae_jax.tools.preflight.run import FAILED, OK, WARNING
from mae_jax.train import loop
from mae_jax.train.state import abstract_state, create_state
from tests.helpers import tiny_configs
from tests.train.test_initial_state import damage

CONFIG = {"steps": 6, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with the steps 2, 4 and 6."""
    folder = str(tmp_path_factory.mktemp("finished"))
    config = tiny_configs.config(**CONFIG)
    assert loop.run(Pretrain(config, folder), config, folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def files(folder):
    """Names and times of change below a folder."""
    return {
        os.path.join(top, name): os.stat(os.path.join(top, name)).st_mtime_ns
        for top, _, names in os.walk(folder)
        for name in names
    }


def start(folder, *, allow=False, config=None, **changes):
    """The row, and the step the run would start from; nothing in the folder changes."""
    config, before = config or tiny_configs.config(**CONFIG | changes), files(folder)
    task = run_checks.make_task(config, str(folder), allow_config_change=allow)
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    state, row = run_checks.start(task, config, str(folder), abstract, allow_config_change=allow)
    assert files(folder) == before
    return row, state and int(state.step)


def test_from_scratch(tmp_path):
    assert start(tmp_path) == ((OK, "start", "from scratch", ""), 0)


def test_a_run_that_continues(run):
    shutil.rmtree(run / "checkpoints" / "6")
    assert start(run) == ((OK, "start", "continuing after step 4 of 6", ""), 4)


def test_a_finished_run(run):
    row, step = start(run)
    assert row.mark == WARNING and step == 6 and "the run is finished" in row.advice


def test_leftovers_of_a_killed_run_stay_for_the_next_one(run):
    left = run / "checkpoints" / "8.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert start(run)[1] == 6
    assert left.is_dir()


def test_damaged_checkpoints_are_named_and_stay(run, caplog):
    damage(run, 4, 6)
    row, step = start(run)
    assert row.mark == WARNING and step == 2 and row.result == "continuing after step 2 of 6"
    assert "checkpoint 4, 6 is damaged" in row.advice
    assert "a run would set it aside" in caplog.text
    damage(run, 2)
    row, step = start(run)
    assert row.mark == FAILED and step is None and "every checkpoint" in row.result
    assert "(2, 4, 6)" in row.result


def test_another_configuration(run):
    row, step = start(run, seed=5)
    assert row.mark == FAILED and step is None
    assert "seed: 0 -> 5" in row.result and "--allow_config_change" in row.result
    row, step = start(run, seed=5, allow=True)
    assert step == 6 and row.result == "continuing after step 6 of 6, changed: seed: 0 -> 5"


def test_another_model(run):
    row, step = start(run, model__embed_dim=48, allow=True)
    assert row.mark == FAILED and step is None and "does not fit" in row.result


def test_another_run_to_continue(run, tmp_path):
    (tmp_path / "new").mkdir()
    row, step = start(tmp_path / "new", resume=str(run / "checkpoints" / "4"))
    assert (row.mark, step) == (OK, 4)
    assert row.result == f"continuing after step 4 of 6, of {run} in a new workdir"


def test_weights(run, tmp_path):
    (tmp_path / "new").mkdir()
    row, step = start(tmp_path / "new", init_from=str(run))
    total = len(jax.tree.leaves(Pretrain(tiny_configs.config(), "").init_variables()[0]))
    assert step == 0 and row.mark == OK
    assert row.result == f"weights from {run}: {total} of {total} arrays"
    tune = tiny_configs.classify_config(init_from=str(run))
    row, _ = start(tmp_path / "new", config=tune)
    assert row.mark == OK and row.result == f"weights from {run}: 16 of 20 arrays"


def test_weights_that_do_not_fit_or_are_not_there(run, tmp_path):
    (tmp_path / "new").mkdir()
    row, step = start(tmp_path / "new", init_from=str(run), model__depth=2)
    assert row.mark == FAILED and step is None
    assert "missing" in row.result and "blocks_1/attn/qkv/kernel" in row.result
    for nowhere in (tmp_path / "nowhere", tmp_path / "nowhere.pth"):
        row, _ = start(tmp_path / "new", init_from=str(nowhere))
        assert row.mark == FAILED and f"--config.init_from={nowhere} (default: " in row.result
        assert "no checkpoint under" in row.result or "no file" in row.result
    damage(run, 6)
    row, _ = start(tmp_path / "new", init_from=str(run))
    assert row.mark == FAILED and "is damaged" in row.result


def test_a_state_that_does_not_fit_the_device(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")

    monkeypatch.setattr("mae_jax.train.initial_state.create_state", full)
    row, step = start(tmp_path)
    assert step is None and row.mark == FAILED
    assert row.result == "RESOURCE_EXHAUSTED: 9 GB" and "performance.md" in row.advice


def test_the_steps_start_where_the_run_would(run, capsys):
    shutil.rmtree(run / "checkpoints" / "6")
    before, rows = files(run), []
    assert preflight.run(tiny_configs.config(**CONFIG), str(run), rows.append)
    assert files(run) == before
    (row,) = [row for row in rows if row.name == "step"]
    assert "at this speed 2 steps take" in row.result


def test_a_workdir_in_use(tmp_path):
    rows = []
    with workdir.lock(str(tmp_path), first=True):
        before = files(tmp_path)
        assert not preflight.run(tiny_configs.config(), str(tmp_path), rows.append)
        assert files(tmp_path) == before and workdir_lock.LOCK in os.listdir(tmp_path)
    assert rows[-1].mark == FAILED and "is in use by process" in rows[-1].result


class Batches:
    """Some batches, then an error."""

    def __init__(self, batch, left, bad=0):
        self.batch, self.left, self.bad_count = batch, left, bad

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone\nand more")
        return self.batch


def test_data_that_cannot_be_read():
    batch, row = run_checks.read_data(Batches(1, left=3), 8, "9 images")
    assert batch is None and row.mark == FAILED and row.result == "9 images: the disk is gone"
    batch, row = run_checks.read_data(Batches(1, left=9, bad=2), 8, "9 images")
    assert batch == 1 and row.mark == WARNING and "2 of these images cannot be read" in row.result
    batch, row = run_checks.read_data(Batches(1, left=9), 8, "9 images")
    assert batch == 1 and row.mark == OK and row.result.startswith("9 images; ")
    assert "images/s on this host" in row.result


def step(config, *, break_batch=lambda batch: batch, num_steps=None):
    task, mesh = Pretrain(config, ""), sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    batches = task.train_batches(0)
    batch = next(batches)
    batches.close()
    state = create_state(task, abstract)
    return run_checks.train_steps(task, config, mesh, abstract, state, break_batch(batch))


def test_a_loss_that_is_not_finite():
    row = step(tiny_configs.config(data__std=(1e-30,) * 3, target__normalize=False))
    assert row.mark == FAILED and "data.std" in row.advice and "not finite" in row.result


def test_an_update_that_is_not_finite(monkeypatch):
    """Only one, and not the last."""
    right, taken = run_checks.make_train_step, []

    def wrong(*words, **more):
        def run(state, batch):
            state, values = right(*words, **more)(state, batch)
            taken.append(1)
            return state, values | {"skipped": jnp.float32(len(taken) == 2)}

        return run

    monkeypatch.setattr(run_checks, "make_train_step", wrong)
    row = step(tiny_configs.config())
    assert row.mark == FAILED and "not finite" in row.result and len(taken) == 4


def test_a_step_that_does_not_fit(monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")

    monkeypatch.setattr(run_checks, "make_train_step", lambda *_, **__: full)
    row = step(tiny_configs.config())
    assert row == (FAILED, "step", "RESOURCE_EXHAUSTED: 9 GB", run_checks.NO_MEMORY)
