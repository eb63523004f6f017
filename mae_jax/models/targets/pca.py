"""The leading PCA coefficients of each patch (paper table 1d), and the fit of the PCA."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models.targets.base import PatchSpec, Target
from mae_jax.models.targets.pixel import reconstruction_loss

_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round pixels to bfloat16


class PcaTarget(Target):
    """Coefficients of a patch along the first principal components, float32 [B, M, N].

    The loss is their mean squared error, unweighted: components count in proportion to their
    variance.

    Args:
      spec: how images are patchified and normalized.
      components: number of components, N.
      arrays: `mean` float32 [P] and `components` float32 [N, P], whose rows are orthonormal.

    Raises:
      ValueError: the arrays have other names or shapes.
    """

    learned = True

    def __init__(self, spec: PatchSpec, components: int, arrays: dict[str, np.ndarray]):
        expected = _shapes(spec, components)
        actual = {name: np.shape(x) for name, x in arrays.items()}
        if actual != expected:
            raise ValueError(f"a PCA target of {expected} has arrays {actual}")
        self.spec, self.width, self.arrays = spec, components, arrays
        self.caption = f"PCA target: {components} of {spec.patch_dim} components are predicted"

    @classmethod
    def from_config(
        cls, spec: PatchSpec, config: Any, *, dtype: Any, load_tokenizer: Callable[[], Any]
    ) -> Self:
        components = config.target.components
        return cls(spec, components, placeholders(spec, components))

    @classmethod
    def from_metadata(
        cls, spec: PatchSpec, metadata: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        return cls(spec, metadata["components"], arrays)

    @classmethod
    def describe(cls, metadata: Mapping[str, Any]) -> str:
        return f"{metadata['components']} PCA coefficients"

    def metadata(self) -> dict[str, Any]:
        return {"components": self.width}

    def targets(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        centered = self.spec.patches(images, ids) - arrays["mean"]
        return jnp.matmul(centered, arrays["components"].T, precision=_EXACT)

    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        return reconstruction_loss(pred, targets)

    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Predicts the mean of the training patches, whose coefficients are 0."""
        return jnp.square(targets).mean(axis=(1, 2))

    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        """The projection of the patch onto the components, without finer structure."""
        return arrays["mean"] + jnp.matmul(pred, arrays["components"], precision=_EXACT)


def placeholders(spec: PatchSpec, components: int) -> dict[str, np.ndarray]:
    """Zeros shaped like the arrays of `PcaTarget`, until these are fitted or restored."""
    return {n: np.zeros(shape, np.float32) for n, shape in _shapes(spec, components).items()}


def _shapes(spec: PatchSpec, components: int) -> dict[str, tuple[int, ...]]:
    return {"mean": (spec.patch_dim,), "components": (components, spec.patch_dim)}


class Fit(NamedTuple):
    """A fitted PCA.

    Attributes:
      mean: float32 [P].
      components: float32 [N, P], unit vectors by decreasing variance; the entry of each with the
        largest magnitude is positive.
      variance: float64 [P] of all P components, decreasing. The sum over all but the first N is the
        mean squared error, summed over a patch, of a reconstruction from N components.
      patches: number of patches it was fitted to.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray
    patches: int


def fit(batches: Iterable[np.ndarray], size: int, components: int) -> Fit:
    """Fits a PCA in float64, with one batch in memory at a time.

    Args:
      batches: patch vectors [n, P], any n.
      size: P.
      components: number of components, N <= P.
    """
    count, total, squares = 0, np.zeros(size), np.zeros((size, size))
    for batch in batches:
        wide = batch.astype(np.float64)
        count += len(wide)
        total += wide.sum(axis=0)
        squares += wide.T @ wide
    mean = total / max(count, 1)
    variance, vectors = np.linalg.eigh(squares / max(count, 1) - np.outer(mean, mean))
    rows = vectors.T[::-1][:components]
    largest = np.abs(rows).argmax(axis=1)
    rows = rows * np.sign(rows[np.arange(components), largest])[:, None]
    decreasing = np.maximum(variance[::-1], 0)  # rounding can make small eigenvalues negative
    return Fit(mean.astype(np.float32), rows.astype(np.float32), decreasing, count)
