"""The target that a configuration describes: some learn something from the data first."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mae_jax.targets import Frame, Target
from mae_jax.targets.pixel import PixelTarget
from mae_jax.tasks.base import ImageTask


class Kind(NamedTuple):
    """How a kind of target comes to be.

    Attributes:
      width: function of `config.target`: numbers that are predicted for each patch; 0 for its
        pixels. Asked before any data are read.
      make: function of the task (whose configuration, data and workdir it may use) and the frame.
    """

    width: Callable[[Any], int]
    make: Callable[[ImageTask, Frame], Target]


def _pixel(task: ImageTask, frame: Frame) -> Target:
    return PixelTarget(frame, normalize=task.config.target.normalize)


KINDS = {"pixel": Kind(lambda options: 0, _pixel)}
