"""What is looked at before an expensive run, with the faults it is for."""

import collections
import os

import jax
import numpy as np
import pytest

from mae_jax import preflight, sharding
from mae_jax.preflight import FAILED, OK, WARNING
from mae_jax.state import abstract_state
from mae_jax.tasks.pretrain import Pretrain
from tests import tiny
from tests.processes import run_two


def look(config, folder):
    rows = []
    return preflight.look(config, str(folder), rows.append), {row.name: row for row in rows}


def test_nothing_is_wrong_and_nothing_stays(tmp_path):
    config = tiny.config(grad_accum=1, mesh__fsdp=2)
    fine, rows = look(config, tmp_path / "runs" / "w")
    assert fine and {row.mark for row in rows.values()} == {OK}
    assert set(rows) == {
        *("devices", "processes", "disk", "host", "clocks", "all-reduce", "data", "step")
    }
    assert "20 steps" in rows["step"].seen and "images/s" in rows["data"].seen
    assert f"{jax.device_count()} x cpu" in rows["devices"].seen
    assert "GB/s" in rows["all-reduce"].seen
    assert not (tmp_path / "runs" / "w").exists()


def test_the_workdir_of_a_run_stays_as_it_was(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert look(tiny.config(), tmp_path)[0]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__source": "folder", "data__root": "/nowhere"}, "/nowhere does not exist"),
        ({"mesh__data": 3}, "mesh.data=3"),
        ({"mask__ratio": 0.999}, "mask.ratio"),
    ],
)
def test_what_main_would_refuse(tmp_path, changes, message):
    fine, rows = look(tiny.config(**changes), tmp_path / "w")
    assert not fine and rows["start"].mark == FAILED and message in rows["start"].seen
    assert "step" not in rows


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    fine, rows = look(tiny.config(), tmp_path / "file")
    assert not fine and "--workdir" in rows["start"].seen


def test_too_little_room(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage(10**9, 0, 3 * 10**9))
    row = preflight.room(str(tmp_path / "not" / "there"), 10**9, keep=3)
    assert row.mark == FAILED and "4 more checkpoints take 4.0 GB" in row.seen
    assert "--config.checkpoint.keep" in row.advice
    assert preflight.room(str(tmp_path), 10**9, keep=2).mark == OK
    assert preflight.room(str(tmp_path), 10**9, keep=3, there=3).mark == OK  # a run that goes on


def test_an_accelerator_that_jax_does_not_see(monkeypatch):
    monkeypatch.setattr(preflight.glob, "glob", lambda pattern: [pattern] * ("nvidia" in pattern))
    row = preflight.devices()
    assert row.mark == WARNING and "nvidia" in row.advice


@pytest.mark.parametrize("apart, mark", [(10, OK), (300, WARNING)])
def test_clocks(monkeypatch, apart, mark):
    monkeypatch.setattr(preflight.together, "everywhere", lambda v: [v, v + 1, v + apart])
    row = preflight.clocks()
    assert row.mark == mark and f"{apart} s" in row.seen
    assert mark == OK or "process 2" in row.advice


class Batches:
    """Some batches, then an error."""

    bad_count = 0

    def __init__(self, batch, left, bad=0):
        self.batch, self.left, self.bad_count = batch, left, bad

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return self.batch


def test_data_that_cannot_be_read():
    batch, row = preflight.reading(Batches(1, left=3), rows=8)
    assert batch is None and row.mark == FAILED and "the disk is gone" in row.seen
    batch, row = preflight.reading(Batches(1, left=9, bad=2), rows=8)
    assert batch == 1 and row.mark == WARNING and "2 bad images" in row.seen


def test_a_loss_that_is_not_finite():
    config = tiny.config(data__std=(1e-30,) * 3, target__normalize=False)
    task = Pretrain(config, "")
    mesh = sharding.make_mesh()
    batches = task.train_batches(0)
    batch = next(batches)
    batches.close()
    (row,) = preflight.stepping(task, config, mesh, abstract_state(task, mesh), batch)
    assert row.mark == FAILED and "data.std" in row.advice


def test_a_sum_that_is_wrong(monkeypatch):
    monkeypatch.setattr(preflight.jnp, "ones", lambda shape: np.full(shape, 2, np.float32))
    row = preflight.all_reduce(sharding.make_mesh())
    assert row.mark == FAILED and "broken" in row.advice


TWO = """
import json, sys
from mae_jax.tools import preflight
address, index, *words = sys.argv[1:]
sys.exit(preflight.main([*words, f"--coordinator={address}", "--num_processes=2",
                         f"--process_id={index}"]))
"""


def test_two_processes(tmp_path):
    words = [*tiny.flags(), f"--workdir={tmp_path}/w"]
    (first, second) = run_two(TWO, [words, words])
    assert first[0] == second[0] == 0, first[2]
    assert "2 processes with the same" in first[1] and "all-reduce  4 MB" in first[1]
    assert "✓" not in second[1]


def test_two_processes_that_differ(tmp_path):
    words = [*tiny.flags(), f"--workdir={tmp_path}/w"]
    ended = run_two(TWO, [words, [*words, "--config.mask.ratio=0.5"]])
    for status, output, _ in ended:
        assert status == 1 and "--config.mask.ratio" in output and "process 1" in output
