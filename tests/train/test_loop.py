"""The loop on four CPU devices: resuming, micro-batches, meshes, errors."""

import contextlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax.traverse_util import unflatten_dict

from mae_jax.checkpoint import checkpointer, layout, reader
from mae_jax.config.diff import flatten
from mae_jax.config.schema import ADDED
from mae_jax.distributed import sharding
from mae_jax.ops import rng
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.preemption import StopRequest
from mae_jax.tasks import pretrain
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from mae_jax.train.initial_state import check_same_run
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs


def run(workdir, config, **options):
    workdir = str(workdir)
    return loop.run(Pretrain(config, workdir), config, workdir, **options)


def assert_same_params(a, b, **tolerance):
    a, b = reader.load_arrays(str(a))["params"], reader.load_arrays(str(b))["params"]
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0} | tolerance)


@pytest.mark.parametrize(
    "changes, stop",  # 7: no line is logged at the step of the stop
    [({}, 10), ({"grad_accum": 2, "mesh__fsdp": 2, "optim__grad_clip": 0.5}, 7)],
    ids=["plain", "accumulating, sharded, clipped"],
)
def test_twenty_steps_equal_ten_a_restart_and_ten(tmp_path, changes, stop):
    # Six steps are an epoch: the restart falls inside the second one, the run crosses three.
    config = tiny_configs.config(eval_every=10, **changes)
    assert run(tmp_path / "whole", config)
    assert not run(tmp_path / "parts", config, **tiny_configs.stop_in_step(stop))
    assert layout.find(str(tmp_path / "parts")).step == stop
    assert run(tmp_path / "parts", config)
    assert tiny_configs.metric_lines(tmp_path / "whole") == tiny_configs.metric_lines(
        tmp_path / "parts"
    )
    assert [line["step"] for line in tiny_configs.metric_lines(tmp_path / "whole")] == [
        5,
        10,
        15,
        20,
    ]
    whole, parts = (
        tiny_configs.metric_lines(tmp_path / name, "eval") for name in ("whole", "parts")
    )
    assert whole == parts
    states = []
    for name in ("whole", "parts"):
        task = Pretrain(config, str(tmp_path / name))
        mesh = sharding.make_mesh(**config.mesh)
        saver = checkpointer.Checkpointer(str(tmp_path / name))
        states.append(saver.restore(20, abstract_state(task, mesh)))
        saver.close()
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)


class Lost(Exception):
    """Simulates the end of the process."""


@pytest.mark.parametrize("checks", [1, 2], ids=["in a step", "before it saves"])
def test_nothing_is_saved_in_a_workdir_that_is_lost(tmp_path, monkeypatch, checks):
    """The lock is checked after each step, in case of a pause, and before saving."""
    asked = []

    def ensure_held(*, now=False):
        asked.append(now)
        if len(asked) == checks:
            raise Lost

    monkeypatch.setattr(loop.workdir, "ensure_held", ensure_held)
    with pytest.raises(Lost):
        run(tmp_path, tiny_configs.config(steps=1, log_every=1))
    assert asked == [False, True][:checks]
    assert (
        not layout.exists(str(tmp_path)) and len(tiny_configs.metric_lines(tmp_path)) == checks - 1
    )


def test_loss_falls_and_a_finished_run_is_left_alone(tmp_path, caplog):
    config = tiny_configs.config(steps=60, eval_every=30, data__num_train=64)
    assert run(tmp_path, config)
    before, after = (tiny_configs.metric_lines(tmp_path, "eval")[i]["loss"] for i in (0, -1))
    assert after < 0.8 * before
    assert (
        tiny_configs.metric_lines(tmp_path, "eval")[0]["count"] == 20
    )  # 20 examples, batches of 16
    with caplog.at_level("INFO"):
        assert run(tmp_path, config)
    assert "nothing left to do" in caplog.text


def one_step(config, tmp_path):
    """Parameters and metrics after one step at full learning rate, without clipping."""
    config.optim.warmup_epochs = 1e-9
    task = Pretrain(config, str(tmp_path))
    mesh = sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    state = create_state(task, abstract)
    step = make_train_step(task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum)
    batches = task.train_batches(0)
    state, values = step(state, sharding.to_device(mesh, next(batches)))
    batches.close()
    return state, jax.device_get(values)


def test_accumulation_and_sharding_give_the_update_of_the_big_batch(tmp_path):
    base = {"batch_size": 64, "model__embed_dim": 64, "model__num_heads": 4}
    whole, expected = one_step(tiny_configs.config(**base), tmp_path / "a")
    for name, changes in {"accum": {"grad_accum": 4}, "fsdp": {"mesh__fsdp": 4}}.items():
        state, values = one_step(tiny_configs.config(**base, **changes), tmp_path / name)
        for key in ("loss", "grad_norm", "baseline_loss", "lr"):
            np.testing.assert_allclose(values[key], expected[key], rtol=2e-6, err_msg=key)
        # Adam's first step hides the size of a gradient; its first moment shows it.
        moments = (x.opt_state[1].mu for x in (whole, state))
        for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
            bound = 2e-6 * max(float(np.abs(a).max()), 1e-4)
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)
        kernel = state.params["blocks_0"]["mlp"]["fc1"]["kernel"]
        shards = {shard.data.size for shard in kernel.addressable_shards}
        assert shards == ({kernel.size // 4} if name == "fsdp" else {kernel.size})


def test_every_step_has_its_own_masks(tmp_path):
    task = Pretrain(tiny_configs.config(), str(tmp_path))
    batch = {"image": jnp.zeros((4, 16, 16, 3), jnp.uint8)}

    def prepared(seed, step):
        return task.prepare(batch, rng.stream_key(seed, "train", step), jnp.int32(step))["noise"]

    noise = [prepared(0, step) for step in (0, 1, 1)]
    assert not np.array_equal(noise[0], noise[1])
    np.testing.assert_array_equal(noise[1], noise[2])
    assert not np.array_equal(noise[0], prepared(1, 0))


def test_changed_config_is_refused_unless_harmless_or_allowed(tmp_path):
    run(tmp_path, tiny_configs.config(steps=2))
    with pytest.raises(UsageError, match=r"optim.weight_decay: 0.05 -> 0.1.*--allow_config_change"):
        run(tmp_path, tiny_configs.config(steps=2, optim__weight_decay=0.1))
    with open(tmp_path / "config.json", encoding="utf-8") as file:
        assert json.load(file)["optim"]["weight_decay"] == 0.05  # a refusal leaves no trace
    assert run(tmp_path, tiny_configs.config(steps=2, log_every=7, mesh__fsdp=2))
    # Clipping can be switched on for the rest of a run: the optimizer state does not change.
    changed = tiny_configs.config(steps=3, optim__weight_decay=0.1, optim__grad_clip=1.0)
    assert run(tmp_path, changed, allow_config_change=True)
    assert layout.find(str(tmp_path)).step == 3
    wider = tiny_configs.config(steps=4, model__embed_dim=32)
    with pytest.raises(UsageError, match="checkpoint 3 of .* does not fit"):
        run(tmp_path, wider, allow_config_change=True)


def test_other_data_are_another_run(tmp_path):
    run(tmp_path / "a", tiny_configs.config(steps=1))
    task = Pretrain(tiny_configs.config(steps=1), "")
    old = task.metadata(1)
    new = {**old, "data": {**old["data"], "source": {**old["data"]["source"], "hash": "other"}}}
    with pytest.raises(UsageError, match="data hash: .* -> other"):
        check_same_run(old, new, allow_change=False)
    moved = {**old, "data": {**old["data"], "source": {**old["data"]["source"], "root": "/b"}}}
    check_same_run(old, moved, allow_change=False)
    with pytest.raises(UsageError, match="seed: 0 -> 1"):
        run(tmp_path / "b", tiny_configs.config(seed=1, resume=str(tmp_path / "a")))


def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    metadata = Pretrain.metadata

    def earlier(self, step):
        """Metadata without keys of later versions."""
        found = metadata(self, step)
        known = {k: v for k, v in flatten(found["config"]).items() if k not in ADDED}
        return found | {"config": unflatten_dict(known, sep=".")}

    monkeypatch.setattr(Pretrain, "metadata", earlier)
    run(tmp_path, tiny_configs.config(steps=2))
    monkeypatch.undo()
    assert "color_jitter" not in reader.load_metadata(str(tmp_path))["config"]["data"]
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(epath.Path(tmp_path) / "checkpoints" / "2" / "state").tree
    assert tree.keys() == {"step", "params", "opt_state"}  # all that there was then
    with pytest.raises(UsageError, match="optim.name: adamw -> lars"):
        run(tmp_path, tiny_configs.config(steps=2, optim__name="lars"))
    assert run(tmp_path, tiny_configs.config(steps=2))


def test_some_checkpoints_are_kept_for_ever(tmp_path):
    config = tiny_configs.config(steps=7, checkpoint__keep=1, checkpoint__keep_every=3)
    run(tmp_path, config)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "6", "7"]


def test_weights_of_another_run_are_taken_whole_or_not_at_all(tmp_path, caplog):
    run(tmp_path / "first", tiny_configs.config(steps=2))
    same = tiny_configs.config(steps=1, init_from=str(tmp_path / "first"), optim__base_lr=0.0)
    with caplog.at_level("INFO"):
        run(tmp_path / "second", same)
    assert "matched 36 of 36 parameters" in caplog.text
    assert "compiling the training step" in caplog.text
    assert "compiling the evaluation" not in caplog.text  # there is none
    assert_same_params(tmp_path / "first", tmp_path / "second")
    deeper = tiny_configs.config(init_from=str(tmp_path / "first"), model__depth=2)
    with pytest.raises(UsageError, match="missing.*blocks_1/attn/qkv/kernel"):
        run(tmp_path / "third", deeper)
    wider = tiny_configs.config(init_from=str(tmp_path / "first"), model__decoder_embed_dim=32)
    with pytest.raises(UsageError, match=r"decoder_embed/bias is \(16,\), needed \(32,\)"):
        run(tmp_path / "fourth", wider)


def test_resume_continues_another_run_in_a_new_workdir(tmp_path):
    config = tiny_configs.config()
    run(tmp_path / "whole", config)
    run(tmp_path / "first", config, **tiny_configs.stop_in_step(10))
    run(tmp_path / "second", tiny_configs.config(resume=str(tmp_path / "first")))
    assert_same_params(tmp_path / "whole", tmp_path / "second")
    assert layout.find(str(tmp_path / "first")).step == 10


def step_zero_is_done(workdir):
    return len(tiny_configs.metric_lines(workdir, "eval")) == 1


def test_a_signal_cuts_an_evaluation_short_and_it_is_made_when_the_run_goes_on(
    tmp_path, monkeypatch, caplog
):
    config = tiny_configs.config(steps=5, eval_every=4, figure_every=4)
    request, evaluate = StopRequest(), pretrain.evaluate

    def asked(step, params, batches, mesh):
        request._requested |= step_zero_is_done(tmp_path / "parts")
        return evaluate(step, params, batches, mesh)

    monkeypatch.setattr(pretrain, "evaluate", asked)
    with caplog.at_level("INFO"):
        assert not run(tmp_path / "parts", config, stop=request)
    assert "stopped after step 4, which is saved" in caplog.text
    starts = ("compiling the evaluation", "compiling the training step", "first step took")
    found = [start for text in caplog.messages for start in starts if text.startswith(start)]
    assert found == list(starts)  # each is announced once, before it is compiled
    assert layout.find(str(tmp_path / "parts")).step == 4
    assert [line["step"] for line in tiny_configs.metric_lines(tmp_path / "parts", "eval")] == [0]
    monkeypatch.undo()
    assert run(tmp_path / "parts", config)
    assert [line["step"] for line in tiny_configs.metric_lines(tmp_path / "parts", "eval")] == [
        0,
        4,
        5,
    ]
    assert os.path.exists(tmp_path / "parts" / "pictures" / "step_00000004.png")


def test_a_signal_in_the_last_evaluation_does_not_make_a_run_done(tmp_path, monkeypatch):
    config = tiny_configs.config(steps=4, eval_every=4)
    request, evaluate = StopRequest(), pretrain.evaluate

    def asked(step, params, batches, mesh):
        request._requested |= step_zero_is_done(tmp_path)
        return evaluate(step, params, batches, mesh)

    monkeypatch.setattr(pretrain, "evaluate", asked)
    assert not run(tmp_path, config, stop=request)
    monkeypatch.undo()
    assert run(tmp_path, config)
    assert [line["step"] for line in tiny_configs.metric_lines(tmp_path, "eval")] == [0, 4]


def test_what_a_run_leaves_behind(tmp_path):
    config = tiny_configs.config(steps=4, eval_every=2, figure_every=2, checkpoint__every_steps=2)
    run(tmp_path, config)
    names = set(os.listdir(tmp_path))
    assert {"config.json", "env.json", "metrics.jsonl", "tensorboard", "checkpoints"} <= names
    pictures = sorted(os.listdir(tmp_path / "pictures"))
    assert pictures == ["step_00000000.png", "step_00000002.png", "step_00000004.png"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "4"]
    line = tiny_configs.metric_lines(tmp_path)[-1]
    assert {"step", "epoch", "split", "loss", "baseline_loss", "lr", "grad_norm"} <= line.keys()
    assert line["bad_images"] == 0 and line["epoch"] == pytest.approx(4 / 6)
    metadata = reader.load_metadata(str(tmp_path))
    assert metadata["step"] == 4 and metadata["model"]["patch_size"] == [4, 4]
    assert metadata["target"] == {"kind": "pixel", "normalize": False}
    assert metadata["data"]["mean"] == [0.5, 0.5, 0.5]
    assert metadata["config"] == json.loads(json.dumps(config.to_dict()))
