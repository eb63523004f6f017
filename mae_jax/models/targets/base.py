"""The interface of prediction targets, and how their images are patchified."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.ops.patches import gather, grid_size, patchify, to_float


class PatchSpec(NamedTuple):
    """How images are patchified and normalized.

    Attributes:
      image_size: (H, W).
      patch_size: (ph, pw).
      channels: C.
      mean, std: of the pixels, per channel; see `ops.patches.to_float` for units.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def patch_dim(self) -> int:
        """Length of a patch vector, P = ph * pw * C."""
        return self.patch_size[0] * self.patch_size[1] * self.channels

    def all_ids(self, number: int) -> jax.Array:
        """Indices of all patches of `number` images, int32 [number, L]."""
        rows, columns = grid_size(self.image_size, self.patch_size)
        return jnp.broadcast_to(jnp.arange(rows * columns), (number, rows * columns))

    def patches(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Normalized patches float32 [B, M, P]: patches `ids` [B, M] of `images` [B, H, W, C]."""
        return to_float(gather(patchify(images, self.patch_size), ids), self.mean, self.std)


class Target(abc.ABC):
    """What the decoder predicts for each patch, and the loss of its predictions.

    To add a target, subclass this, implement the abstract methods and add an entry to `TARGETS`
    (see docs/extending.md).

    Attributes:
      spec: how images are patchified and normalized.
      width: values that the decoder predicts for each patch.
      arrays: constants of the target, by name. Never trained; stored in the model state and so in
        every checkpoint.
      learned: `arrays` are placeholders of the right shapes, to be fitted to training images when a
        run starts.
      caption: note under figures; "" for none.
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
        """Creates the target of a new run.

        Args:
          spec: how images are patchified and normalized.
          config: the whole configuration; target options are in `config.target`.
          dtype: of the model's arithmetic.
          load_tokenizer: returns the `convert.tokenizer.Tokenizer` of the run.

        Raises:
          UsageError: the configuration does not work with this target.
        """

    @classmethod
    @abc.abstractmethod
    def from_metadata(
        cls, spec: PatchSpec, metadata: Mapping[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        """Restores a checkpoint's target from the result of `metadata` and the saved `arrays`.

        Raises:
          ValueError: the arrays do not match the target.
        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, metadata: Mapping[str, Any]) -> str:
        """A short description for users, such as "raw pixels"."""

    @abc.abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Arguments of `from_metadata` and `describe`, as JSON types."""

    @abc.abstractmethod
    def targets(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Targets [B, M, ...] of the patches `ids` [B, M] of `images` [B, H, W, C]."""

    @abc.abstractmethod
    def loss(self, pred: jax.Array, targets: jax.Array) -> jax.Array:
        """Loss of each image, float32 [B], of predictions [B, M, width]."""

    @abc.abstractmethod
    def baseline_loss(self, targets: jax.Array, valid: jax.Array) -> jax.Array:
        """Loss float32 [B] of a trivial prediction that ignores the image's structure.

        `valid` float32 [B] is 0 for padding, which must not influence other images.
        """

    @abc.abstractmethod
    def to_pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        """Renders predictions [B, L, width] of all patches as normalized patches [B, L, P].

        `images` [B, H, W, C] are the originals, for targets that do not determine the pixels.
        """

    def true_pixels(self, arrays: Any, images: jax.Array) -> jax.Array | None:
        """Renders the true targets of all patches in the way `to_pixels` renders predictions.

        Figures show them next to the predictions. By default, targets that have the shape of a
        prediction are rendered by `to_pixels`.

        Returns:
          Normalized patches [B, L, P], or None if there is nothing to show beside the image.
        """
        ids = self.spec.all_ids(images.shape[0])
        targets = self.targets(arrays, images, ids)
        if targets.shape != (*ids.shape, self.width):
            return None
        return self.to_pixels(arrays, targets, images)
