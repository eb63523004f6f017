"""Prediction targets of the decoder (paper section 3 and table 1d), one class each."""

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
    """The class of `config.target.kind`: a key of `TARGETS`, or the user's own `module:Class`.

    Raises:
      UsageError: there is no such class.
    """
    return extensions.find(TARGETS, kind, "--config.target.kind")


def restore(metadata: Mapping[str, Any], spec: PatchSpec, arrays: dict[str, np.ndarray]) -> Target:
    """Restores the target of a checkpoint.

    Args:
      metadata: the checkpoint's entry `target`: `kind` plus the result of `Target.metadata`.
      spec: how images are patchified and normalized.
      arrays: the target's arrays from the model state, by name; {} if it has none.

    Raises:
      KeyError: this version has no target of that kind.
      UsageError: the user's class is not loaded (see `extensions.find_loaded`).
      ValueError: the arrays do not match the target.
    """
    return _class_of(metadata).from_metadata(spec, metadata, arrays)


def describe(metadata: Mapping[str, Any]) -> str:
    """A short description of a checkpoint's target, such as "raw pixels". Raises as `restore`."""
    return _class_of(metadata).describe(metadata)


def _class_of(metadata: Mapping[str, Any]) -> type[Target]:
    return extensions.find_loaded(TARGETS, metadata["kind"])
