"""Pixels, raw or normalized per patch."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models.targets.base import PatchSpec, Target
from mae_jax.ops.patches import patchify, to_float

EPS = 1e-6


class PixelTarget(Target):
    """Pixels of a patch, float32 [B, M, P] (paper section 3, "Reconstruction target").

    Args:
      spec: how images are patchified and normalized.
      normalize: normalize each patch by its own mean and standard deviation (`norm_pix_loss`).
    """

    def __init__(self, spec: PatchSpec, *, normalize: bool):
        self.spec, self._normalize = spec, normalize
        self.width = spec.patch_dim
        self.arrays: dict[str, np.ndarray] = {}
        note = "Normalized pixels: each predicted patch has its true mean and standard deviation"
        self.caption = note if normalize else ""

    @classmethod
    def from_config(
        cls, spec: PatchSpec, config: Any, *, dtype: Any, load_tokenizer: Callable[[], Any]
    ) -> Self:
        return cls(spec, normalize=config.target.normalize)

    @classmethod
    def from_metadata(
        cls, spec: PatchSpec, metadata: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        return cls(spec, normalize=metadata["normalize"])

    @classmethod
    def describe(cls, metadata: Mapping[str, Any]) -> str:
        return "normalized patches" if metadata["normalize"] else "raw pixels"

    def metadata(self) -> dict[str, Any]:
        return {"normalize": self._normalize}

    def targets(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        return pixel_target(self.spec.patches(images, ids), normalize=self._normalize)

    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        return reconstruction_loss(pred, targets)

    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Predicts each patch by its own mean."""
        return baseline_loss(targets)

    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        if not self._normalize:
            return pred
        patches = patchify(images, self.spec.patch_size)
        return undo_normalize(pred, to_float(patches, self.spec.mean, self.spec.std))

    def true_pixels(self, arrays: Any, images: jax.Array) -> None:
        """None: the target is the image."""


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [..., 1] of each patch vector [..., P], over all channels.

    As in the official code, the variance is unbiased (divided by P - 1), and 1e-6 is added to it
    before the square root.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    var = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(var + EPS)


def pixel_target(patches: jax.Array, *, normalize: bool) -> jax.Array:
    """Target, float32 [..., P], of `patches` float32 [..., P].

    With `normalize`, each patch is normalized by its own statistics (`norm_pix_loss`, paper table
    1d).
    """
    if not normalize:
        return patches
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def undo_normalize(pred: jax.Array, patches: jax.Array) -> jax.Array:
    """Predicted normalized patches to pixels, by the statistics of the original `patches`."""
    mean, std = patch_statistics(patches)
    return pred * std + mean


def reconstruction_loss(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of each image, float32 [B], over patches [B, M, P]."""
    error = jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32))
    return error.mean(axis=(1, 2))


def baseline_loss(target: jax.Array) -> jax.Array:
    """Loss float32 [B] of predicting each patch of `target` [B, M, P] by its own mean."""
    return target.var(axis=-1).mean(axis=-1)
