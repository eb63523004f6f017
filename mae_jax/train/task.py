"""The interface between the training loop and a task."""

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
    """An evaluation that runs at step 0, every `every` steps, and at the end of a run.

    Attributes:
      every: steps between two evaluations; 0 disables it.
      run: function (state, mesh, on_batch) -> metrics by name, the same on every process. It must
        call `on_batch` after every batch; exceptions of `on_batch` end the evaluation.
      scores: names of the metrics by which `checkpoint.keep_best` may choose; () if unknown.
    """

    every: int
    run: Callable[[Any, Mesh, OnBatch], dict[str, float]]
    scores: tuple[str, ...] = ()


class PretrainedParams(NamedTuple):
    """Parameters of another run, adapted to a task's model, by name.

    Attributes:
      arrays: the parameters to load.
      reinitialized: prefixes of parameters that may be missing and are then initialized randomly.
      unused: names of the other run's parameters that are not used.
    """

    arrays: dict[str, np.ndarray]
    reinitialized: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class Task:
    """Something to train or evaluate with the loop.

    A task must define `init_variables`. To be trained it also needs `num_steps`, `train_batches`,
    `loss` and an optimizer: `tx` and `schedule`. Everything else has defaults.

    Attributes:
      num_steps: 0 trains nothing and runs the evaluators once.
      tx: optimizer of the trained parameters.
      schedule: learning rate by step, for the metrics.
      steps_per_epoch: for the metrics.
      flops_per_image: FLOPs of a step per image, for the utilization in the metrics.
      ema_decay: decay of an average of the trained parameters; 0 keeps none.
      evaluators: by the `split` of their lines in the metrics.
    """

    num_steps: int = 0
    tx: optax.GradientTransformation = optax.identity()
    schedule: Schedule = staticmethod(_no_learning)
    steps_per_epoch: float = 1.0
    flops_per_image: float = 0.0
    ema_decay: float = 0.0
    evaluators: Mapping[str, Evaluator] = {}

    # Required for steps.

    def init_variables(self) -> tuple[Any, Any]:
        """Initial (parameters, model state). Traced by JAX, so that sharded arrays are possible."""
        raise NotImplementedError

    def initial_model_state(self) -> dict[str, np.ndarray]:
        """Known initial values of the model state, by name; {} for none.

        `init_variables` returns placeholders of the same shape for them.
        """
        return {}

    def train_batches(self, start_step: int) -> Any:
        """Iterator over this process's rows of each batch; see `data.tolerant.FallibleBatches`."""
        raise NotImplementedError

    def prepare(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
        """Applies random operations to a global batch, before it is split into micro-batches.

        `step` is the number of completed steps, for anything that changes during a run.
        """
        return batch

    def loss(
        self, params: Any, model_state: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[Batch, Any]]:
        """Returns (mean loss, (other scalar metrics, new model state)) of a micro-batch."""
        raise NotImplementedError

    def trainable(self, name: str) -> bool:
        """Whether a parameter is trained. Frozen ones need no gradient or optimizer state."""
        return True

    # Optional.

    def load_pretrained(
        self, weights: dict[str, np.ndarray], metadata: dict[str, Any]
    ) -> PretrainedParams:
        """Adapts the parameters of another run's checkpoint to this task's model.

        Raises:
          UsageError: they belong to another type of model.
        """
        raise UsageError("this task starts from scratch: leave --config.init_from empty")

    @property
    def reading_error(self) -> Exception | None:
        """Why data for an evaluation or a figure could not be read, or None."""
        return None

    def describe_batch(self, step: int) -> list[str]:
        """Human-readable origins of the examples in the global batch of a step (from 1)."""
        return []

    def figure(self, state: Any, mesh: Mesh) -> np.ndarray | None:
        """uint8 [H, W, 3] figure of the model's current outputs; None if the task has no figure."""
        return None

    def save_figure(self, image: np.ndarray, step: int) -> str:
        """Writes a figure to the workdir; returns its path."""
        raise NotImplementedError

    def metadata(self, step: int) -> dict[str, Any]:
        """Metadata with which a checkpoint can be used without the configuration."""
        return {}

    def next_commands(self, workdir: str) -> list[str]:
        """Commands to print at the end of a run, up to five; `workdir` as they should name it."""
        return []

    def summary(self) -> dict[str, Any]:
        """Lines to log at the start of a run, by name."""
        return {}
