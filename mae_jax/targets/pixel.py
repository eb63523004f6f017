"""Pixels, as they are or normalised patch by patch."""

from typing import Any

import jax
import numpy as np

from mae_jax.ops import targets
from mae_jax.ops.patches import patchify, to_float
from mae_jax.targets.base import Frame


class PixelTarget:
    """Pixels (paper section 3); see `base.Target`.

    Args:
      frame: how images are cut and scaled.
      normalize: each patch by its own mean and deviation (`norm_pix_loss`).
    """

    def __init__(self, frame: Frame, *, normalize: bool):
        self.frame, self._normalize = frame, normalize
        self.width = frame.patch_dim
        self.arrays: dict[str, np.ndarray] = {}
        note = "normalised target: shown with the true mean and deviation of each patch"
        self.caption = note if normalize else ""

    def metadata(self) -> dict[str, Any]:
        return {"kind": "pixel", "normalize": self._normalize}

    def values(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        return targets.pixel_target(self.frame.patches(images, ids), normalize=self._normalize)

    def loss(self, pred: jax.Array, values: jax.Array) -> jax.Array:
        return targets.reconstruction_loss(pred, values)

    def baseline(self, values: jax.Array, valid: jax.Array) -> jax.Array:
        """Predicting each patch by its own mean."""
        return targets.baseline_loss(values)

    def pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        if not self._normalize:
            return pred
        patches = patchify(images, self.frame.patch_size)
        return targets.undo_normalize(pred, to_float(patches, self.frame.mean, self.frame.std))
