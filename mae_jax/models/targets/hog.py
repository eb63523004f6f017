"""Histograms of oriented gradients (HOG), the target of MaskFeat (Wei et al., 2112.09133)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models.targets.base import PatchSpec, Target
from mae_jax.models.targets.pixel import reconstruction_loss
from mae_jax.ops.patches import gather, patchify
from mae_jax.runtime.errors import require

BINS = 9  # unsigned orientations over 180 degrees
CELLS = 2  # per side of a patch: 8 x 8 pixels in patches of 16 x 16
EPS = 1e-6


class HogTarget(Target):
    """HOG features of each patch: per channel, `CELLS` x `CELLS` cells with `BINS` orientations.

    Each pixel votes for the orientation of its gradient (central differences, edges repeated) with
    the gradient's magnitude. The histogram of a cell has unit L2 norm, or is zero if the cell is
    constant, so the features are invariant to brightness and contrast. The loss is the mean squared
    error.

    Args:
      spec: how images are patchified and normalized.

    Raises:
      UsageError: the patch size is not a multiple of `CELLS`.
    """

    def __init__(self, spec: PatchSpec):
        height, width = spec.patch_size
        require(
            height % CELLS == 0 and width % CELLS == 0,
            f"--config.target.kind=hog cuts patches into {CELLS} x {CELLS} cells: "
            f"--config.model.patch_size={spec.patch_size} must be even",
        )
        self.spec = spec
        self.width = CELLS * CELLS * BINS * spec.channels
        self.arrays: dict[str, np.ndarray] = {}
        self.caption = "HOG target: a line per orientation, bright where its gradients are strong"

    @classmethod
    def from_config(
        cls, spec: PatchSpec, config: Any, *, dtype: Any, load_tokenizer: Callable[[], Any]
    ) -> Self:
        return cls(spec)

    @classmethod
    def from_metadata(
        cls, spec: PatchSpec, metadata: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        return cls(spec)

    @classmethod
    def describe(cls, metadata: Mapping[str, Any]) -> str:
        return "HOG features"

    def metadata(self) -> dict[str, Any]:
        return {}

    def targets(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        """float32 [B, M, CELLS * CELLS * C * BINS]: cell row, cell column, channel, bin."""
        height, width = self.spec.patch_size
        histograms = hog(images, (height // CELLS, width // CELLS))
        rows, columns = histograms.shape[1:3]
        flat = histograms.reshape(len(images), rows, columns, -1)
        return gather(patchify(flat, (CELLS, CELLS)), ids)

    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        return reconstruction_loss(pred, targets)

    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Predicts the mean histogram of the target patches of each image."""
        return targets.var(axis=1).mean(axis=-1)

    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        """The usual HOG rendering: in each cell, a line along the edge of every orientation."""
        spec = self.spec
        cell = spec.patch_size[0] // CELLS, spec.patch_size[1] // CELLS
        bins = pred.reshape(*pred.shape[:2], CELLS, CELLS, spec.channels, BINS)
        lines = jnp.asarray(_lines(cell), pred.dtype)
        drawn = jnp.einsum("blyxcn,nhw->blyhxwc", jnp.clip(bins, 0, 1), lines)
        drawn = jnp.clip(drawn, 0, 1).reshape(*pred.shape[:2], -1, spec.channels)
        mean, std = jnp.asarray(spec.mean), jnp.asarray(spec.std)
        return ((drawn - mean) / std).reshape(*pred.shape[:2], -1)


def hog(images: jax.Array, cell: tuple[int, int]) -> jax.Array:
    """Histograms float32 [B, H / h, W / w, C, BINS] of images [B, H, W, C] in cells of (h, w).

    Bin n covers orientations from 180 n / BINS to 180 (n + 1) / BINS degrees; 0 degrees is a
    horizontal gradient.
    """
    padded = jnp.pad(images.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    angle = jnp.arctan2(down, right) % math.pi
    bins = jnp.minimum(jnp.floor(angle * (BINS / math.pi)), BINS - 1).astype(jnp.int32)
    votes = jax.nn.one_hot(bins, BINS) * jnp.hypot(down, right)[..., None]
    batch, height, width, channels = images.shape
    shape = batch, height // cell[0], cell[0], width // cell[1], cell[1], channels, BINS
    sums = votes.reshape(shape).sum(axis=(2, 4))
    return sums / jnp.maximum(jnp.linalg.norm(sums, axis=-1, keepdims=True), EPS)


def _lines(cell: tuple[int, int]) -> np.ndarray:
    """float64 [BINS, h, w] in [0, 1]: for each orientation, a line along its edge."""
    height, width = cell
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    angles = (np.arange(BINS)[:, None, None] + 0.5) * np.pi / BINS
    distance = np.abs(x * np.cos(angles) + y * np.sin(angles))
    return np.clip(1 - distance, 0, 1)
