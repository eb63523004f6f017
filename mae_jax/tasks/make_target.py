"""The target that a configuration describes: some learn something from the data first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mae_jax.config import require
from mae_jax.targets import Frame, Target, pca
from mae_jax.targets.pixel import PixelTarget
from mae_jax.targets.tokens import TokenTarget
from mae_jax.tasks import find_tokenizer
from mae_jax.tasks.base import ImageTask
from mae_jax.tasks.build import compute_dtype
from mae_jax.tasks.learn_pca import learn


class Kind(NamedTuple):
    """How a kind of target comes to be.

    Attributes:
      width: function of the configuration and the workdir: numbers that are predicted for each
        patch; 0 for its pixels. Asked before any data are read.
      make: function of the task (whose configuration, data and workdir it may use) and the frame.
      learn: the same, for the arrays of a target that `make` knows only the shapes of. Called by
        all processes together, and only when a run begins: later a checkpoint has the arrays.
    """

    width: Callable[[Any, str], int]
    make: Callable[[ImageTask, Frame], Target]
    learn: Callable[[ImageTask, Frame], dict[str, np.ndarray]] | None = None


def _pixel(task: ImageTask, frame: Frame) -> Target:
    return PixelTarget(frame, normalize=task.config.target.normalize)


def _pca(task: ImageTask, frame: Frame) -> Target:
    components = task.config.target.components
    return pca.PcaTarget(frame, components, pca.unknown(frame, components))


def _tokens(task: ImageTask, frame: Frame) -> Target:
    config = task.config
    tokenizer = find_tokenizer.find(config, task.workdir)
    target = TokenTarget(
        frame, tokenizer.metadata(), tokenizer.arrays, dtype=compute_dtype(config.model.dtype)
    )
    require(
        config.data.dtype == "uint8",
        f"--config.data.dtype={config.data.dtype}: a tokenizer takes pixels in [0, 1], uint8",
    )
    require(
        target.draws or config.picture_every == 0,
        f"--config.picture_every={config.picture_every}: the tokenizer has no decoder that could "
        "draw its tokens: set --config.picture_every=0 (or lay decoder.pkl beside encoder.pkl and "
        "give their folder)",
    )
    return target


KINDS = {
    "pixel": Kind(lambda config, workdir: 0, _pixel),
    "pca": Kind(lambda config, workdir: config.target.components, _pca, learn),
    "tokens": Kind(find_tokenizer.vocab_size, _tokens),
}
