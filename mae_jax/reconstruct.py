"""What a masked autoencoder makes of images with hidden patches (paper figures 2 to 4)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.ops.masking import Masking
from mae_jax.ops.patches import from_float, gather, patchify, to_float, unpatchify
from mae_jax.ops.targets import undo_normalize

GREY = 0.5


class Reconstruction(NamedTuple):
    """float32 [B, H, W, C] each; uint8 input comes out in units of [0, 1]."""

    original: jax.Array
    masked: jax.Array
    """The original with hidden patches grey."""
    predicted: jax.Array
    """The decoder's output for every patch."""
    pasted: jax.Array
    """The decoder's output where patches were hidden, the original elsewhere."""


def reconstruct(
    model: MaskedAutoencoder,
    params: Any,
    images: jax.Array,
    masking: Masking,
    *,
    normalize: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Reconstruction:
    """Hides patches of `images` [B, H, W, C] and predicts them.

    With `normalize` (the model predicts normalised patches) the prediction is brought back to
    pixels with the **true** mean and deviation of each patch, which the model never knew.
    """
    patches = to_float(patchify(images, model.patch_size), mean, std)
    visible = gather(patches, masking.ids_keep)
    pred: Any = model.apply({"params": params}, visible, masking, method=model.predict)
    pred = pred.astype(patches.dtype)
    if normalize:
        pred = undo_normalize(pred, patches)
    pixels = from_float(pred, mean, std)
    hidden = masking.mask[:, :, None]
    original = patchify(images, model.patch_size).astype(patches.dtype)
    if images.dtype == jnp.uint8:
        original, grey = original / 255, GREY
    else:
        grey = from_float(jnp.zeros_like(patches[:1, :1]), mean, std)
    views = (
        original,
        original * (1 - hidden) + grey * hidden,
        pixels,
        original * (1 - hidden) + pixels * hidden,
    )
    return Reconstruction(*(unpatchify(v, model.patch_size, model.grid) for v in views))
