"""A run continues with other devices, processes, folders and lengths."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.checkpoint import checkpointer
from mae_jax.distributed import sharding
from mae_jax.runtime import preemption
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from mae_jax.train.state import abstract_state, create_state
from tests.e2e.test_main import REPO, finish, start, start_two
from tests.helpers import tiny_configs
from tests.helpers.processes import xla_flags


def run(workdir, config, **options):
    return loop.run(Pretrain(config, str(workdir)), config, str(workdir), **options)


def all_files(folder):
    """Path -> content, of every file below."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def travel(folder, meshes):
    """A state passes through checkpoints from mesh to mesh and does not change.

    Args:
      folder: for the checkpoints.
      meshes: (number of devices, of which fsdp) of each.
    """
    task = Pretrain(tiny_configs.config(model__embed_dim=64, model__num_heads=4), str(folder))
    expected = state = None
    for i, (number, fsdp) in enumerate(meshes):
        mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:number])
        abstract = abstract_state(task, mesh)
        if expected is None:
            state = create_state(task, abstract)
            moments = jax.tree.map(
                lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype),
                state.opt_state,
            )
            state = state.replace(step=state.step + 7, opt_state=moments)
            expected = jax.device_get(state)
        else:
            saver = checkpointer.Checkpointer(str(folder / str(i - 1)))
            state = saver.restore(7, abstract)
            saver.close()
        kernel = state.params["blocks_0"]["mlp"]["fc1"]["kernel"]
        sizes = {shard.data.size for shard in kernel.addressable_shards}
        assert len(kernel.addressable_shards) == number and sizes == {kernel.size // fsdp}
        for x, y in zip(*map(jax.tree.leaves, (expected, jax.device_get(state))), strict=True):
            np.testing.assert_array_equal(x, y)
        saver = checkpointer.Checkpointer(str(folder / str(i)))
        saver.save(state, task.metadata(7))
        saver.close()


def test_a_state_is_bit_equal_on_other_devices(tmp_path):
    travel(tmp_path, [(4, 4), (1, 1), (2, 2)])


@pytest.mark.slow
def test_from_four_devices_to_one_to_eight(tmp_path):
    code = (
        "import pathlib; from tests.test_changed_world import travel; "
        f"travel(pathlib.Path({str(tmp_path)!r}), [(4, 2), (1, 1), (8, 8), (8, 1)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": REPO, "XLA_FLAGS": xla_flags(8)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_copied_and_a_moved_workdir_go_on(tmp_path, monkeypatch):
    config = tiny_configs.config(steps=8, log_every=1)
    run(tmp_path / "whole", config)
    stops = iter([False] * 4 + [True])
    monkeypatch.setattr(preemption.StopRequest, "poll", lambda self: next(stops))
    assert not run(tmp_path / "old", config)
    monkeypatch.undo()
    copy, moved = tmp_path / "copy", tmp_path / "with spaces, ümläuts" / "new"
    shutil.copytree(tmp_path / "old", copy)
    shutil.move(tmp_path / "old", moved)
    for folder in (copy, moved):
        assert run(folder, config)
        assert tiny_configs.metric_lines(folder) == tiny_configs.metric_lines(tmp_path / "whole")
    assert not (tmp_path / "old").exists()


def test_a_run_is_made_longer_only_on_purpose_and_never_shorter(tmp_path, caplog):
    short, long = (
        tiny_configs.config(steps=0, epochs=epochs, log_every=1, optim__warmup_epochs=0.5)
        for epochs in (1.0, 2.0)
    )
    run(tmp_path / "whole", long)
    folder = tmp_path / "run"
    run(folder, short)
    with pytest.raises(UsageError, match=r"epochs: 1.0 -> 2.0.*--allow_config_change"):
        run(folder, long)
    assert run(folder, long, allow_config_change=True)
    extended, whole = (tiny_configs.metric_lines(tmp_path / name) for name in ("run", "whole"))
    assert [line["step"] for line in extended] == list(range(1, 13))
    for a, b in zip(extended, whole, strict=True):
        assert a["baseline_loss"] == b["baseline_loss"]  # the same images and masks
        assert (a["lr"] == b["lr"]) == (not 4 < a["step"] <= 6)  # the new schedule from step 7 on

    before = all_files(folder / "checkpoints")
    with pytest.raises(UsageError, match=r"epochs: 2.0 -> 1.0.*--allow_config_change"):
        run(folder, short)
    with caplog.at_level("INFO"):
        assert run(folder, short, allow_config_change=True)
    assert "step 12 of 6: nothing left to do" in caplog.text
    assert all_files(folder / "checkpoints") == before
    assert tiny_configs.metric_lines(folder) == extended


def one_process(flags, cwd):
    return [start(*flags, cwd=cwd, devices=4)]


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(start_two, one_process), (one_process, start_two)])
def test_another_number_of_processes_continues_the_same_run(tmp_path, before, after):
    changes = {"checkpoint__every_steps": 4, "eval_every": 4, "mesh__fsdp": 2}
    flags = tiny_configs.flags(steps=8, log_every=1, **changes)
    for status, output in map(finish, before([*flags, "--workdir=a"], tmp_path)):
        assert status == 0, output
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "8")
    results = list(map(finish, after([*flags, "--workdir=b"], tmp_path)))
    for status, output in results:
        assert status == 0, output
        assert "continuing after step 4" in output
    for split, number in (("train", 8), ("eval", 3)):
        a, b = (tiny_configs.metric_lines(tmp_path / name, split) for name in "ab")
        assert len(a) == len(b) == number
        for x, y in zip(a, b, strict=True):
            for key in x:
                if key != "split":
                    np.testing.assert_allclose(x[key], y[key], rtol=5e-6, err_msg=key)
