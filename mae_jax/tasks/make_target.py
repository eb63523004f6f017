"""The target that a configuration describes: some learn something from the data first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mae_jax.targets import Frame, Target, pca
from mae_jax.targets.pixel import PixelTarget
from mae_jax.tasks.base import ImageTask
from mae_jax.tasks.learn_pca import learn


class Kind(NamedTuple):
    """How a kind of target comes to be.

    Attributes:
      width: function of `config.target`: numbers that are predicted for each patch; 0 for its
        pixels. Asked before any data are read.
      make: function of the task (whose configuration, data and workdir it may use) and the frame.
      learn: the same, for the arrays of a target that `make` knows only the shapes of. Called by
        all processes together, and only when a run begins: later a checkpoint has the arrays.
    """

    width: Callable[[Any], int]
    make: Callable[[ImageTask, Frame], Target]
    learn: Callable[[ImageTask, Frame], dict[str, np.ndarray]] | None = None


def _pixel(task: ImageTask, frame: Frame) -> Target:
    return PixelTarget(frame, normalize=task.config.target.normalize)


def _pca(task: ImageTask, frame: Frame) -> Target:
    components = task.config.target.components
    return pca.PcaTarget(frame, components, pca.unknown(frame, components))


KINDS = {
    "pixel": Kind(lambda options: 0, _pixel),
    "pca": Kind(lambda options: options.components, _pca, learn),
}
