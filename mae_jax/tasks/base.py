"""The base class of tasks on images, composed of `ImageData` and `TrainingPlan`."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mae_jax.checkpoint import layout
from mae_jax.data.sources import coco
from mae_jax.data.sources.folder import check_root
from mae_jax.runtime import environment
from mae_jax.runtime.errors import all_of
from mae_jax.tasks import figures
from mae_jax.tasks.image_data import ImageData
from mae_jax.tasks.training_plan import TrainingPlan
from mae_jax.train.initial_state import check_init_from
from mae_jax.train.task import Task


def check_places(config: Any, workdir: str) -> None:
    """Checks that the paths in a configuration exist, without reading the data.

    Raises:
      UsageError: names every key whose path does not exist.
    """
    checks: list[Callable[[], object]] = []
    data = config.data
    if data.source == "folder":
        checks.append(lambda: check_root(data.root))
    if data.source == "coco" and not (workdir and layout.exists(workdir)):
        checks.append(lambda: coco.find(data.root, split=data.split, eval_split=data.eval_split))
    # A run that continues from its own checkpoints needs neither.
    if workdir and not layout.exists(workdir):
        if config.resume:
            checks.append(lambda: _check_resume(config.resume))
        elif config.init_from:
            checks.append(lambda: check_init_from(config.init_from))
    all_of(*checks)


def _check_resume(path: str) -> None:
    layout.require_run(path, layout.find(path))


class ImageTask(Task):
    """A task on images; see `train.task.Task` for the interface.

    Args:
      config: the whole configuration, adapted to the data.
      workdir: folder of the run; "" to write nothing.
      data: the images.
      plan: length and optimizer of the run; None for a task that trains nothing.
    """

    def __init__(
        self, config: Any, workdir: str, data: ImageData, plan: TrainingPlan | None = None
    ):
        self.config, self.workdir, self.data, self.plan = config, workdir, data, plan
        self.pixels = data.pixels
        self.steps_per_epoch = data.steps_per_epoch
        if plan:
            self.num_steps, self.tx, self.schedule = plan.num_steps, plan.tx, plan.schedule

    @property
    def reading_error(self) -> Exception | None:
        return self.data.reading_error

    def train_batches(self, start_step: int) -> Any:
        return self.data.train_batches(start_step)

    def describe_batch(self, step: int) -> list[str]:
        return self.data.describe_batch(step)

    def save_figure(self, image: np.ndarray, step: int) -> str:
        path = os.path.join(self.workdir, "pictures", f"step_{step:08d}.png")
        figures.save_png(path, image)
        return path

    def metadata(self, step: int) -> dict[str, Any]:
        return {
            "task": self.config.task,
            "step": step,
            "epochs_seen": step / self.steps_per_epoch,
            "data": self.data.metadata(),
            "config": self.config.to_dict(),
            "versions": environment.versions(),
        }

    def summary(self) -> dict[str, Any]:
        return self.data.summary() | (self.plan.summary() if self.plan else {})
