"""What a target is."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mae_jax.ops.patches import gather, patchify, to_float


class Frame(NamedTuple):
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


class Target(Protocol):
    """What is predicted of a patch, and how far off a prediction is.

    Attributes:
      frame: how its images are cut and scaled.
      width: numbers that the decoder gives for each patch.
      arrays: what it needs beside the images, by name; never trained, kept in the model state (and
        so in every checkpoint). {} for nothing.
      caption: what a picture of it must tell the reader; "" for nothing.
    """

    frame: Frame
    width: int
    arrays: dict[str, np.ndarray]
    caption: str

    def metadata(self) -> dict[str, Any]:
        """What `targets.restore` needs beside the arrays; `kind` is part of it."""
        ...

    def values(self, arrays: Any, images: jax.Array, ids: jax.Array) -> jax.Array:
        """What is right for the patches `ids` [B, M] of `images` [B, H, W, C]: [B, M, ...]."""
        ...

    def loss(self, pred: jax.Array, values: jax.Array) -> jax.Array:
        """Loss of each image, float32 [B], of predictions [B, M, width]."""
        ...

    def baseline(self, values: jax.Array, valid: jax.Array) -> jax.Array:
        """Loss [B] of a guess that knows nothing of the image's structure: the bar to beat.

        `valid` float32 [B] is 0 for images that do not count.
        """
        ...

    def pixels(self, arrays: Any, pred: jax.Array, images: jax.Array) -> jax.Array:
        """Normalised pixels [B, L, P] that predictions [B, L, width] of all patches stand for.

        `images` are the true ones [B, H, W, C], for targets that say less than a picture needs.
        """
        ...
