"""A preflight as a whole, in one process."""

import os

import jax
import pytest

from mae_jax.tools.preflight import machine_checks, run, run_checks
from mae_jax.tools.preflight.run import FAILED, OK
from tests.helpers import tiny_configs


def preflight(config, folder):
    rows = []
    return run.run(config, str(folder), rows.append), {row.name: row for row in rows}


def test_everything_passes_and_nothing_is_left_behind(tmp_path):
    config = tiny_configs.config(grad_accum=1, mesh__fsdp=2)
    passed, rows = preflight(config, tmp_path / "runs" / "w")
    assert passed and {row.mark for row in rows.values()} == {OK}
    assert list(rows) == [
        *("devices", "versions", "processes", "recipe", "disk", "host", "clocks", "all-reduce"),
        *("start", "data", "step"),
    ]
    assert f"{jax.device_count()} x cpu" in rows["devices"].result
    assert f"jax {jax.__version__}, " in rows["versions"].result
    assert rows["start"].result == "from scratch"
    assert "steps 20 = 3.333 epochs of 6 steps" in rows["recipe"].result
    assert "global batch 16 in 1 part(s)" in rows["recipe"].result
    assert rows["data"].result.startswith("shapes/train: 96 images of 12 classes; held out 20; ")
    assert "20 steps" in rows["step"].result
    assert not (tmp_path / "runs" / "w").exists()


def test_the_workdir_of_a_run_stays_as_it_was(tmp_path):
    """Including the list of images that an earlier start saved."""
    (tmp_path / "data").mkdir()
    for name in ("metrics.jsonl", "data/listing_train.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert preflight(tiny_configs.config(), tmp_path)[0]
    assert sorted(os.listdir(tmp_path)) == ["data", "metrics.jsonl"]
    assert os.listdir(tmp_path / "data") == ["listing_train.jsonl"]


def test_a_workdir_in_a_bucket_is_left_empty(gcs):
    passed, rows = preflight(tiny_configs.config(), "gs://bucket/run")
    assert passed and rows["disk"].result.startswith("a bucket; each checkpoint takes")
    assert gcs.names("bucket") == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__source": "folder", "data__root": "/nowhere"}, "/nowhere does not exist"),
        ({"mesh__data": 3}, "mesh.data=3"),
        ({"mask__ratio": 0.999}, "mask.ratio"),
    ],
)
def test_input_that_main_would_reject(tmp_path, changes, message):
    passed, rows = preflight(tiny_configs.config(**changes), tmp_path / "w")
    assert not passed and rows["start"].mark == FAILED and message in rows["start"].result
    assert "step" not in rows


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    passed, rows = preflight(tiny_configs.config(), tmp_path / "file")
    assert not passed and "--workdir" in rows["start"].result


def bad(name):
    return lambda *_, **__: run.Row(FAILED, name, "broken")


@pytest.mark.parametrize(
    "module, function, name, ends",
    [
        (machine_checks, "disk_space", "disk", False),
        (machine_checks, "host_memory", "host", False),
        (machine_checks, "clocks", "clocks", False),
        (machine_checks, "all_reduce", "all-reduce", False),
        (run_checks, "start", "start", True),
        (run_checks, "read_data", "data", True),
        (run_checks, "train_steps", "step", False),
        (machine_checks, "device_memory", "memory", False),
    ],
)
def test_any_failed_row_fails_the_preflight(tmp_path, monkeypatch, module, function, name, ends):
    """Whatever comes after it."""
    row = bad(name)()
    result = {"device_memory": [row], "start": (None, row), "read_data": (None, row)}
    monkeypatch.setattr(module, function, lambda *_, **__: result.get(function, row))
    if function != "train_steps":
        monkeypatch.setattr(run_checks, "train_steps", lambda *_: run.Row(OK, "step", ""))
    passed, rows = preflight(tiny_configs.config(), tmp_path / "w")
    assert not passed and rows[name] == row
    assert ends == ("step" not in rows)


def test_permanent_checkpoints_need_disk_space(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        machine_checks, "disk_space", lambda *words: calls.append(words) or bad("disk")()
    )
    monkeypatch.setattr(run_checks, "start", lambda *_, **__: (None, bad("start")()))
    preflight(tiny_configs.config(checkpoint__keep=2, checkpoint__keep_every=5), tmp_path / "w")
    ((folder, size, keep, existing),) = calls
    assert folder == str(tmp_path / "w") and size > 10**4
    assert keep == 2 + 20 // 5 and existing == 0


def test_a_task_that_trains_nothing(tmp_path):
    config = tiny_configs.classify_config("knn", init_from="", steps=0)
    passed, rows = preflight(config, tmp_path / "w")
    assert passed and "step" not in rows
    assert "96 images of 12 classes" in rows["data"].result and "not read" in rows["data"].result
