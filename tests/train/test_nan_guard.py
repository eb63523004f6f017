"""Non-finite numbers injected into the input, the loss, a gradient and the learning rate."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax.checkpoint import layout
from mae_jax.distributed import sharding
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from mae_jax.train.nan_guard import NanGuard
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs

INPUT, LOSS, GRADIENT, RATE = 1, 2, 3, 4


@jax.custom_vjp
def poisoned(value, bad):
    """The value itself, but its gradient is infinite if `bad`."""
    return value


poisoned.defvjp(
    lambda value, bad: (value, bad),
    lambda bad, grad: (jnp.where(bad, jnp.inf, grad), None),
)


class FaultyBatches:
    """Batches that contain the fault of their step."""

    bad_count, length = 0, None

    def __init__(self, inner, faults, step):
        self.inner, self.faults, self.step, self.close = inner, faults, step, inner.close

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        batch = next(self.inner)
        return batch | {"fault": np.full(len(batch["label"]), self.faults.get(self.step, 0))}


class Faulty(Pretrain):
    """Pre-training whose batches may carry a fault."""

    faults: dict[int, int] = {}  # by step

    def train_batches(self, start_step):
        return FaultyBatches(super().train_batches(start_step), self.faults, start_step)

    def prepare(self, batch, key, step):
        return super().prepare(batch, key, step) | {"fault": batch["fault"]}

    def loss(self, params, model_state, batch):
        fault = batch["fault"][0]
        image = batch["image"] / 255.0
        batch = batch | {"image": jnp.where(fault == INPUT, jnp.nan, image)}
        value, rest = super().loss(params, model_state, batch)
        return poisoned(value + jnp.where(fault == LOSS, jnp.nan, 0.0), fault == GRADIENT), rest


def faulty(config, workdir, faults):
    """A task with faults in some steps; a faulty learning rate also reaches its optimizer."""
    task = Faulty(config, str(workdir))
    task.faults = faults
    bad = jnp.array([step for step, fault in faults.items() if fault == RATE] or [0])

    def factor(step):
        return jnp.where((bad == step + 1).any(), jnp.inf, 1.0)

    schedule = task.schedule
    task.schedule = lambda step: schedule(step) * factor(step)
    task.tx = optax.chain(task.tx, optax.scale_by_schedule(factor))
    return task


def test_a_step_that_is_not_finite_changes_nothing_but_counters(tmp_path):
    faults = {2: INPUT, 3: LOSS, 4: GRADIENT, 5: RATE}
    config = tiny_configs.config(steps=7, optim__warmup_epochs=1e-9)
    task = faulty(config, tmp_path, faults)
    mesh = sharding.make_mesh()
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=1)
    state, before = create_state(task, abstract), []
    batches = task.train_batches(0)
    for number, batch in zip(range(1, 8), batches, strict=False):
        before.append(jax.device_get(state))
        state, values = step(state, sharding.to_device(mesh, batch))
        assert float(values["skipped"]) == (number in faults), number
        after = jax.device_get(state)
        assert int(after.step) == number
        same = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before[-1], after)), strict=True)
            if jnp.issubdtype(a.dtype, jnp.floating)
        ]
        assert all(same) == (number in faults), number
        np.testing.assert_allclose(values["lr"], task.schedule(number - 1), rtol=1e-6)
    batches.close()


def test_one_bad_batch_is_skipped_and_told_of(tmp_path, caplog):
    config = tiny_configs.config(steps=6, log_every=1, checkpoint__every_steps=3)
    with caplog.at_level("WARNING"):
        assert loop.run(faulty(config, tmp_path, {3: INPUT}), config, str(tmp_path))
    assert "step 3: loss nan" in caplog.text and "1 in a row; 10 end the run" in caplog.text
    lines = tiny_configs.metric_lines(tmp_path)
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False, False]
    assert [line["skipped_updates"] for line in lines][-1] == 1
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 6]  # 3 was deferred: it might have been the first of many


def test_too_many_in_a_row_end_the_run_before_anything_is_saved(tmp_path):
    config = tiny_configs.config(steps=9, nan_guard__max_skips=2, checkpoint__every_steps=1)
    task = faulty(config, tmp_path, {4: LOSS, 5: GRADIENT})
    with pytest.raises(FloatingPointError) as caught:
        loop.run(task, config, str(tmp_path))
    message = str(caught.value)
    assert "step 5: loss" in message and "grad_norm nan" in message
    assert "finite loss was" in message and "at step 3" in message
    assert "checkpoint 3 is untouched" in message and "--config.optim.grad_clip" in message
    assert layout.find(str(tmp_path)).step == 3
    with open(tmp_path / "not_finite_00000005.json", encoding="utf-8") as file:
        report = json.load(file)
    assert [bad["step"] for bad in report] == [4, 5]
    batches = Pretrain(config, "").train_batches(3)
    expected = [task.data.train_source.describe(int(i)) for i in next(batches)["index"]]
    batches.close()
    assert report[0]["examples"] == expected


def test_a_good_step_resets_the_streak():
    guard = NanGuard(3, "", lambda step: [])
    bad = {"skipped": 1.0, "loss": float("nan"), "grad_norm": 1.0, "lr": 0.1}
    good = bad | {"skipped": 0.0, "loss": 1.0}
    for step, values in enumerate([bad, bad, good, bad, bad], start=1):
        assert (guard.check(step, values, lambda: None) is None) == (values is good)
    assert (guard.streak, guard.total) == (2, 4)
