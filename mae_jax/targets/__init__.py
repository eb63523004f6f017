"""What the decoder is asked to predict (paper section 3 and table 1d): a class for each kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.targets.base import Frame, Target
from mae_jax.targets.pca import PcaTarget
from mae_jax.targets.pixel import PixelTarget
from mae_jax.targets.tokens import TokenTarget

__all__ = ["Frame", "Target", "describe", "restore"]


def restore(metadata: Mapping[str, Any], frame: Frame, arrays: dict[str, np.ndarray]) -> Target:
    """The target of a checkpoint.

    Args:
      metadata: what the checkpoint says of its target: `kind` and what that kind adds.
      frame: how its images are cut and scaled.
      arrays: what it keeps in the model state, by name; {} for kinds that keep nothing.

    Raises:
      KeyError: a kind of a later version.
      ValueError: the arrays are not those of such a target.
    """
    return KINDS[metadata["kind"]](metadata, frame, arrays)


def describe(metadata: Mapping[str, Any]) -> str:
    """The target of a checkpoint in a few words."""
    return _WORDS[metadata["kind"]](metadata)


KINDS: dict[str, Any] = {
    "pixel": lambda metadata, frame, arrays: PixelTarget(frame, normalize=metadata["normalize"]),
    "pca": lambda metadata, frame, arrays: PcaTarget(frame, metadata["components"], arrays),
    "tokens": lambda metadata, frame, arrays: TokenTarget(frame, metadata["tokenizer"], arrays),
}

_WORDS: dict[str, Any] = {
    "pixel": lambda metadata: "normalised patches" if metadata["normalize"] else "raw pixels",
    "pca": lambda metadata: f"{metadata['components']} PCA coefficients",
    "tokens": lambda metadata: f"{metadata['tokenizer']['vocab_size']} tokens",
}
