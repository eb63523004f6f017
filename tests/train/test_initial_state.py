"""Where a run starts when checkpoints are damaged, copied, or of another run."""

import os
import shutil
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mae_jax import convert
from mae_jax.checkpoint import checkpointer, layout, reader
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import initial_state, loop
from tests.helpers import tiny_configs

CONFIG = {"steps": 6, "log_every": 1, "checkpoint__every_steps": 2}


def run(workdir, **changes):
    config = tiny_configs.config(**CONFIG | changes)
    return loop.run(Pretrain(config, str(workdir)), config, str(workdir))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with the steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    assert run(workdir)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "elsewhere")


def damage(workdir, *steps):
    """Flips every other bit of the steps' data."""
    for step in steps:
        top = workdir / "checkpoints" / str(step) / "state" / "ocdbt.process_0" / "d"
        for name in os.listdir(top):
            content = np.fromfile(top / name, np.uint8)
            (content ^ 85).tofile(top / name)


def names(workdir):
    return sorted(os.listdir(workdir / "checkpoints"))


def test_a_copied_run_goes_on_from_the_newest_sound_step(finished, copied, caplog):
    damage(copied, 4, 6)
    with caplog.at_level("INFO"):
        assert run(copied)
    for step in (4, 6):
        assert f"checkpoint {step} is damaged: " in caplog.text
        assert f"set aside as corrupt-{step}" in caplog.text
    assert "continuing after step 2" in caplog.text
    assert names(copied) == ["2", "4", "6", "corrupt-4", "corrupt-6"]
    assert tiny_configs.metric_lines(copied) == tiny_configs.metric_lines(finished)
    fields = ("step", "params", "opt_state")
    states = [reader.load_arrays(str(path), fields) for path in (finished, copied)]
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_whose_checkpoints_are_all_damaged_stops(copied):
    damage(copied, 2, 4)
    shutil.rmtree(copied / "checkpoints" / "6" / "metadata")
    for _ in range(2):  # and stays stopped
        with pytest.raises(UsageError) as caught:
            run(copied)
        assert f"every checkpoint in {copied}/checkpoints is damaged" in str(caught.value)
        assert all(way in str(caught.value) for way in ("--workdir", "--config.resume", "remove"))
        assert names(copied) == ["corrupt-2", "corrupt-4", "corrupt-6"]
    with pytest.raises(UsageError, match=r"no checkpoint .*corrupt-2.* set aside as damaged"):
        reader.load_arrays(str(copied))


def test_what_does_not_prove_damage_stops_the_start_and_renames_nothing(copied, monkeypatch):
    def refuse(*_, **__):
        raise TypeError("restore() got an unexpected keyword argument")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", refuse)
    with pytest.raises(UsageError, match=r"checkpoints/6 cannot be read \(TypeError: restore\(\)"):
        run(copied)
    assert names(copied) == ["2", "4", "6"]


def test_steps_under_other_names_are_no_reason_to_start_over(copied):
    for name in names(copied):
        (copied / "checkpoints" / name).rename(copied / "checkpoints" / f"00000{name}")
    before = names(copied)
    with pytest.raises(UsageError, match=r"has 000002, 000004, 000006, .*its number \(2\)"):
        run(copied)
    assert names(copied) == before


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_all_processes_start_from_the_step_that_process_0_finds(copied, tmp_path, monkeypatch, key):
    """If the other run saves, processes may see different newest steps."""
    found, used = layout.find(str(copied / "checkpoints" / "4")), []

    def stop(*arguments):
        used.append(arguments)
        raise UsageError("enough")

    monkeypatch.setattr(reader, "find_on_all_hosts", lambda path: found)
    monkeypatch.setattr(initial_state, "read_initial", stop)
    monkeypatch.setattr(checkpointer.Checkpointer, "restore", stop)
    with pytest.raises(UsageError, match="enough"):
        run(tmp_path / "new", **{key: str(copied)})
    assert used[0][1] == (4 if key == "resume" else found.folder)


def test_weights_without_an_optimizer_cannot_be_resumed(copied, tmp_path):
    convert.save(convert.load(str(copied)), str(tmp_path / "weights"))
    with pytest.raises(UsageError, match="without an optimizer.*--config.init_from="):
        run(tmp_path / "new", resume=str(tmp_path / "weights"))


def test_a_first_save_that_was_killed_leaves_nothing_to_continue(tmp_path, caplog):
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with caplog.at_level("INFO"):
        assert run(tmp_path)
    assert "2.orbax-checkpoint-tmp, which was left unfinished" in caplog.text
    assert names(tmp_path) == ["2", "4", "6"]


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_damage_of_another_run_is_one_line_and_changes_nothing(copied, tmp_path, key):
    damage(copied, 6)
    with pytest.raises(reader.CorruptCheckpointError, match="checkpoints/6 is damaged: .*--verify"):
        run(tmp_path / "new", **{key: str(copied)})
    assert names(copied) == ["2", "4", "6"]
    if key == "resume":
        assert run(tmp_path / "new", **{key: str(copied / "checkpoints" / "4")})
        assert tiny_configs.metric_lines(tmp_path / "new")[0]["step"] == 5


def test_an_older_step_with_another_configuration_is_refused(copied, monkeypatch):
    metadata = Pretrain.metadata

    def other(self, step):
        found = metadata(self, step)
        return found | {"config": found["config"] | ({"seed": 9} if step == 4 else {})}

    monkeypatch.setattr(Pretrain, "metadata", other)
    damage(copied, 6)
    with pytest.raises(UsageError, match=r"seed: 0 -> 9.*--allow_config_change"):
        run(copied)


@pytest.mark.parametrize(
    "mark, expected", [("rerun_eval", True), ("look_again", True), ("", False)]
)
def test_an_evaluation_that_was_cut_short_is_repeated(mark, expected):
    """`look_again` is its name in checkpoints of earlier versions."""
    config = tiny_configs.config()
    task = Pretrain(config, "")
    saver: Any = SimpleNamespace(
        steps=lambda: [4],
        metadata=lambda step: task.metadata(step) | ({mark: True} if mark else {}),
        restore=lambda step, abstract: abstract,
    )
    start = initial_state.start_state(task, config, "", saver, cast(Any, None), False)
    assert start.rerun_eval == expected and start.summary == "continuing after step 4 of 20"
