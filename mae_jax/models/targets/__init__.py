"""What the decoder predicts (paper section 3 and table 1d): one class per kind of target."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.models.targets.base import PatchSpec, Target
from mae_jax.models.targets.hog import HogTarget
from mae_jax.models.targets.pca import PcaTarget
from mae_jax.models.targets.pixel import PixelTarget
from mae_jax.models.targets.tokens import TokenTarget
from mae_jax.runtime import extensions

__all__ = ["TARGETS", "PatchSpec", "Target", "describe", "find", "restore"]

TARGETS: dict[str, type[Target]] = {
    "pixel": PixelTarget,
    "pca": PcaTarget,
    "tokens": TokenTarget,
    "hog": HogTarget,
}


def find(kind: str) -> type[Target]:
    """The class of `config.target.kind`: a key of `TARGETS`, or `module:Class` of the user's.

    Raises:
      UsageError: there is no such class.
    """
    return extensions.find(TARGETS, kind, "--config.target.kind")


def restore(metadata: Mapping[str, Any], spec: PatchSpec, arrays: dict[str, np.ndarray]) -> Target:
    """The target of a checkpoint.

    Args:
      metadata: of the checkpoint's target: `kind`, and what `Target.metadata` returned.
      spec: how its images are cut and scaled.
      arrays: what it keeps in the model state, by name; {} for kinds that keep nothing.

    Raises:
      KeyError: a kind that this version does not have.
      UsageError: the user's class is not loaded (see `extensions.find_loaded`).
      ValueError: the arrays do not fit such a target.
    """
    return _of_checkpoint(metadata).from_metadata(spec, metadata, arrays)


def describe(metadata: Mapping[str, Any]) -> str:
    """The target of a checkpoint in a few words. Raises as `restore`."""
    return _of_checkpoint(metadata).describe(metadata)


def _of_checkpoint(metadata: Mapping[str, Any]) -> type[Target]:
    return extensions.find_loaded(TARGETS, metadata["kind"])
