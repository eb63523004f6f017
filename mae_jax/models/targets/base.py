"""The interface of a prediction target, and how images are cut into patches for it."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from mae_jax.ops.patches import gather, patchify, to_float


class PatchSpec(NamedTuple):
    """How images become patches of numbers.

    Attributes:
      image_size: (H, W).
      patch_size: (ph, pw).
      channels: C.
      mean, std: of the pixels, per channel.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch."""
        return self.patch_size[0] * self.patch_size[1] * self.channels

    def patches(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Normalised pixels float32 [B, M, P] of the patches `ids` [B, M] of [B, H, W, C]."""
        return to_float(gather(patchify(images, self.patch_size), ids), self.mean, self.std)


class Target(abc.ABC):
    """What the decoder predicts for each patch, and the loss of a prediction.

    A new target subclasses this, implements the abstract methods and gets an entry in `TARGETS`
    (see docs/extending.md).

    Attributes:
      spec: how its images are cut and scaled.
      width: numbers that the decoder predicts for each patch.
      arrays: what it needs besides the images, by name. Never trained; kept in the model state, and
        so in every checkpoint.
      learned: `arrays` has only the right shapes until they are fitted to training images at the
        start of a run.
      caption: a note for figures; "" for none.
    """

    spec: PatchSpec
    width: int
    arrays: dict[str, np.ndarray]
    learned: bool = False
    caption: str = ""

    @classmethod
    @abc.abstractmethod
    def from_config(
        cls, spec: PatchSpec, config: Any, *, dtype: Any, load_tokenizer: Callable[[], Any]
    ) -> Self:
        """The target of a new run.

        Args:
          spec: how images are cut and scaled.
          config: the whole configuration; options of targets are in `config.target`.
          dtype: of the model's arithmetic.
          load_tokenizer: returns the `convert.tokenizer.Tokenizer` of the run.

        Raises:
          UsageError: the configuration does not fit this target.
        """

    @classmethod
    @abc.abstractmethod
    def from_metadata(
        cls, spec: PatchSpec, metadata: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        """The target of a checkpoint, from what `metadata()` returned and the saved `arrays`.

        Raises:
          ValueError: the arrays do not fit.
        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, metadata: Mapping[str, Any]) -> str:
        """A few words about the target of a checkpoint, such as "raw pixels"."""

    @abc.abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What `from_metadata` and `describe` need, as JSON types."""

    @abc.abstractmethod
    def targets(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Targets [B, M, ...] of the patches `ids` [B, M] of `images` [B, H, W, C]."""

    @abc.abstractmethod
    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        """Loss of each image, float32 [B], of predictions [B, M, width]."""

    @abc.abstractmethod
    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Loss [B] of a guess that ignores the structure of the image: the bar to beat.

        `valid` float32 [B] is 0 for images that do not count.
        """

    @abc.abstractmethod
    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        """Normalized pixels [B, L, P] that show predictions [B, L, width] of all patches.

        `images` are the true ones [B, H, W, C], for targets that do not determine the pixels.
        """
