"""What a task must define, with and without steps."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax.checkpoint import layout, reader
from mae_jax.runtime.errors import UsageError
from mae_jax.train import loop
from mae_jax.train.task import Evaluator, Task
from tests.helpers import tiny_configs


class Measurement(Task):
    """Trains nothing."""

    def __init__(self):
        self.batches = 0
        self.evaluators = {"eval": Evaluator(1, self.run)}

    def init_variables(self):
        return {"slope": jnp.full((), 3.0)}, {}

    def run(self, state, mesh, on_batch):
        for _ in range(5):
            on_batch()
            self.batches += 1
        return {"slope": float(state.params["slope"])}


class Lines:
    """Batches of points on y = 2 x, whose annotation is not a label."""

    bad_count, length = 0, None

    def __next__(self):
        x = np.linspace(-1, 1, 4, dtype=np.float32)
        return {"x": x, "y": 2 * x, "index": np.arange(4)}

    def empty(self):
        return next(self) | {"index": np.full(4, -1)}

    def close(self):
        pass


class Regression(Measurement):
    """Learns the slope."""

    num_steps = 30
    tx = optax.sgd(0.5)

    def train_batches(self, start_step):
        return Lines()

    def loss(self, params, model_state, batch):
        residual = params["slope"] * batch["x"] - batch["y"]
        return jnp.square(residual).mean(), ({}, model_state)


def test_a_task_without_steps_brings_parameters_and_evaluators_only(tmp_path):
    task = Measurement()
    assert loop.run(task, tiny_configs.config(), str(tmp_path))
    (line,) = tiny_configs.metric_lines(tmp_path, "eval")
    assert line["slope"] == 3 and task.batches == 5
    assert not layout.exists(str(tmp_path))


def test_a_task_with_steps_brings_batches_a_loss_and_an_optimizer(tmp_path):
    assert loop.run(Regression(), tiny_configs.config(), str(tmp_path))
    assert reader.load_arrays(str(tmp_path))["params"]["slope"] == pytest.approx(2, abs=1e-4)
    lines = tiny_configs.metric_lines(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert lines[-1]["lr"] == 0  # of the default schedule: the task says none


def test_weights_are_refused_by_a_task_that_cannot_use_them():
    with pytest.raises(UsageError, match="starts from scratch"):
        Measurement().load_pretrained({}, {})
