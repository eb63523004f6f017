"""What the training loop asks of a task."""

from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.optim.schedules import Schedule

Batch = dict[str, jax.Array]


class Task(Protocol):
    """One way to use the loop."""

    tx: optax.GradientTransformation
    schedule: Schedule
    num_steps: int
    steps_per_epoch: float
    flops_per_image: float

    def init_params(self) -> Any:
        """Fresh parameters; traced, so that they are made where they belong."""
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds what is random to a whole global batch, before it is cut into micro-batches."""
        ...

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Batch]:
        """Mean loss and further scalar metrics of a prepared (micro-)batch."""
        ...

    def train_batches(self, start_step: int) -> Any:
        """Iterator of this process's rows of each batch; has `bad_count` and `close()`."""
        ...

    def evaluate(self, params: Any, mesh: Mesh) -> dict[str, float]:
        """Metrics on held-out data."""
        ...

    def picture(self, params: Any, mesh: Mesh) -> np.ndarray:
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
