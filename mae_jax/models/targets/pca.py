"""The largest PCA coefficients of each patch (paper table 1d), and how a PCA is learnt."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models.targets.base import PatchSpec, Target
from mae_jax.models.targets.pixel import reconstruction_loss

_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round pixels to bfloat16


class PcaTarget(Target):
    """Coefficients of a patch along the directions of largest variance.

    The loss is their plain mean squared error: directions weigh as much as they vary.

    Args:
      spec: how images are cut and scaled.
      components: number of directions, N.
      arrays: `mean` float32 [P] and `components` float32 [N, P], whose rows are orthonormal.

    Raises:
      ValueError: arrays of other names or shapes.
    """

    learned = True

    def __init__(self, spec: PatchSpec, components: int, arrays: dict[str, np.ndarray]):
        wanted = _shapes(spec, components)
        found = {name: np.shape(x) for name, x in arrays.items()}
        if found != wanted:
            raise ValueError(f"a PCA target of {wanted} has arrays {found}")
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
        centred = self.spec.patches(images, ids) - arrays["mean"]
        return jnp.matmul(centred, arrays["components"].T, precision=_EXACT)

    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        return reconstruction_loss(pred, targets)

    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Predicting the mean of all patches, whose coefficients are 0."""
        return jnp.square(targets).mean(axis=(1, 2))

    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        """What the predicted directions say of a patch: without all finer structure."""
        return arrays["mean"] + jnp.matmul(pred, arrays["components"], precision=_EXACT)


def placeholders(spec: PatchSpec, components: int) -> dict[str, np.ndarray]:
    """Zeros in the place of arrays that are yet to be learnt, or to be read from a checkpoint."""
    return {n: np.zeros(shape, np.float32) for n, shape in _shapes(spec, components).items()}


def _shapes(spec: PatchSpec, components: int) -> dict[str, tuple[int, ...]]:
    return {"mean": (spec.patch_dim,), "components": (components, spec.patch_dim)}


class Fit(NamedTuple):
    """A PCA.

    Attributes:
      mean: float32 [P].
      components: float32 [N, P]: unit vectors, by falling variance; the largest entry of each is
        positive.
      variance: float64 [P] along every direction, falling; the sum of all but the first N is the
        mean squared error (summed over a patch) of what N directions say.
      patches: number of patches that it was learnt from.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray
    patches: int


def fit(batches: Iterable[np.ndarray], size: int, components: int) -> Fit:
    """PCA of patches, in float64, without ever holding more than a batch of them.

    Args:
      batches: patch vectors [n, P], any n.
      size: P.
      components: directions wanted, N <= P.
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
    falling = np.maximum(variance[::-1], 0)  # rounding leaves some below
    return Fit(mean.astype(np.float32), rows.astype(np.float32), falling, count)
