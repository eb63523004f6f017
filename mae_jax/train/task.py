"""What the training loop asks of a task."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.optim.schedules import Schedule

Batch = dict[str, jax.Array]


class Evaluator(NamedTuple):
    """A measurement that a run makes every so many steps, at its end, and at step 0.

    Attributes:
      every: steps between two measurements; 0 makes none.
      run: function of the state and the mesh: metrics by name, the same on every process.
    """

    every: int
    run: Callable[[Any, Mesh], dict[str, float]]


class PretrainedParams(NamedTuple):
    """Another run's parameters, made to fit a task's model, by name.

    Attributes:
      arrays: the parameters that are taken over.
      fresh: names, or beginnings of names, that need not be among them: they start anew.
      unused: names of the other run's parameters that are not wanted.
    """

    arrays: dict[str, np.ndarray]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class Task(Protocol):
    """One way to use the loop."""

    tx: optax.GradientTransformation
    schedule: Schedule
    num_steps: int  # 0: nothing is trained, the evaluators run once
    steps_per_epoch: float
    flops_per_image: float
    ema_decay: float  # of an average of the trained parameters; 0 keeps none
    evaluators: dict[str, Evaluator]
    reading_error: Exception | None  # why an evaluation or a picture got empty batches

    def init_variables(self) -> tuple[Any, Any]:
        """Fresh (parameters, model state); traced, so that they are made where they belong."""
        ...

    def given(self) -> dict[str, np.ndarray]:
        """Arrays of the model state, by name, that are known and not computed; {} for none.

        `init_variables` has something of the same shape in their place.
        """
        ...

    def trainable(self, name: str) -> bool:
        """Whether a parameter is trained. The others cost no gradient and no optimiser state."""
        ...

    def adopt(self, weights: dict[str, np.ndarray], metadata: dict[str, Any]) -> PretrainedParams:
        """Fits the parameters of another run's checkpoint to this task's model.

        Raises:
          UsageError: they belong to another kind of model.
        """
        ...

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        """Adds what is random to a whole global batch, before it is cut into micro-batches.

        `step` is the number of steps before, for what changes in the course of a run.
        """
        ...

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        """Mean loss, further scalar metrics and the new model state of a prepared micro-batch."""
        ...

    def train_batches(self, start_step: int) -> Any:
        """Iterator of this process's rows of each batch: see `data.tolerant.FallibleBatches`."""
        ...

    def between_batches(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        """Within it the evaluators make a call after every batch; an exception of it ends them."""
        ...

    def examples(self, step: int) -> list[str]:
        """The examples of the whole batch of a step (from 1), as a person knows them."""
        ...

    def picture(self, state: Any, mesh: Mesh) -> np.ndarray:
        """uint8 [H, W, 3] picture of what the model does now."""
        ...

    def save_picture(self, image: np.ndarray, step: int) -> str:
        """Writes a picture into the workdir; returns its path."""
        ...

    def metadata(self, step: int) -> dict[str, Any]:
        """What one must know to use a checkpoint of this task without its configuration."""
        ...

    def facts(self) -> dict[str, Any]:
        """Lines for the person who starts the run, name by name."""
        ...
