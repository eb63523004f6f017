"""What the training loop asks of a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.optim.schedules import Schedule
from mae_jax.runtime.errors import UsageError

Batch = dict[str, jax.Array]
OnBatch = Callable[[], None]


def ignore_batch() -> None:
    """An `on_batch` that does nothing."""


def _no_learning(step: Any) -> jax.Array:
    return jnp.zeros(())


class Evaluator(NamedTuple):
    """A measurement that is made every `every` steps, at the end of a run, and at step 0.

    Attributes:
      every: steps between two measurements; 0 makes none.
      run: function of the state, the mesh, and a callback to make after every batch, whose
        exceptions end the measurement: metrics by name, the same on every process.
    """

    every: int
    run: Callable[[Any, Mesh, OnBatch], dict[str, float]]


class PretrainedParams(NamedTuple):
    """Another run's parameters, made to fit a task's model, by name.

    Attributes:
      arrays: the parameters that are taken over.
      reinitialized: names, or beginnings of names, that need not be among them.
      unused: names of the other run's parameters that are not wanted.
    """

    arrays: dict[str, np.ndarray]
    reinitialized: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class Task:
    """One way to use the loop.

    A task has to say `init_variables`. One with steps also has `num_steps`, `train_batches`,
    `prepare` and `loss`, and an optimizer: `tx` and `schedule`. The rest has defaults.

    Attributes:
      num_steps: 0 trains nothing and runs the evaluators once.
      tx: the optimizer, of the trained parameters.
      schedule: learning rate by step, for the metrics.
      steps_per_epoch: for the metrics.
      flops_per_image: of a step, for the utilization in the metrics.
      ema_decay: of an average of the trained parameters; 0 keeps none.
      evaluators: by the name of their lines in the metrics.
    """

    num_steps: int = 0
    tx: optax.GradientTransformation = optax.identity()
    schedule: Schedule = staticmethod(_no_learning)
    steps_per_epoch: float = 1.0
    flops_per_image: float = 0.0
    ema_decay: float = 0.0
    evaluators: Mapping[str, Evaluator] = {}

    # What a step needs.

    def init_variables(self) -> tuple[Any, Any]:
        """Initial (parameters, model state); traced, so that they are made where they belong."""
        raise NotImplementedError

    def initial_model_state(self) -> dict[str, np.ndarray]:
        """Arrays of the model state, by name, that are known and not computed; {} for none.

        `init_variables` has something of the same shape in their place.
        """
        return {}

    def train_batches(self, start_step: int) -> Any:
        """Iterator of this process's rows of each batch: see `data.tolerant.FallibleBatches`."""
        raise NotImplementedError

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        """Adds what is random to a whole global batch, before it is cut into micro-batches.

        `step` is the number of steps before, for what changes in the course of a run.
        """
        return batch

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        """Mean loss, further scalar metrics and the new model state of a prepared micro-batch."""
        raise NotImplementedError

    def trainable(self, name: str) -> bool:
        """Whether a parameter is trained. The others cost no gradient and no optimizer state."""
        return True

    # What a run may have besides.

    def load_pretrained(
        self, weights: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> PretrainedParams:
        """Fits the parameters of another run's checkpoint to this task's model.

        Raises:
          UsageError: they belong to another kind of model.
        """
        raise UsageError("this task starts from scratch: leave --config.init_from empty")

    @property
    def reading_error(self) -> Exception | None:
        """Why an evaluation or a figure got empty batches; None if none did."""
        return None

    def describe_batch(self, step: int) -> list[str]:
        """Where the examples of the whole batch of a step (from 1) come from."""
        return []

    def figure(self, state: Any, mesh: Mesh) -> np.ndarray | None:
        """uint8 [H, W, 3] figure of what the model does now; None if the task draws none."""
        return None

    def save_figure(self, image: np.ndarray, step: int) -> str:
        """Writes a figure into the workdir; returns its path."""
        raise NotImplementedError

    def metadata(self, step: int) -> dict[str, Any]:
        """What is needed to use a checkpoint of this task without its configuration."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Lines that are logged at the start of a run, by name."""
        return {}
