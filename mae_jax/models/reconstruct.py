"""What a masked autoencoder makes of images with hidden patches (paper figures 2 to 4)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.targets import Target
from mae_jax.ops.masking import Masking
from mae_jax.ops.patches import from_float, gather, patchify, to_float, unpatchify

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
    target: Target,
    arrays: Any,
) -> Reconstruction:
    """Hides patches of `images` [B, H, W, C] and predicts them.

    Args:
      model: the autoencoder.
      params: its parameters.
      images: uint8, or float in the units of the target's mean and deviation.
      masking: what is hidden.
      target: what the model was trained to predict. Normalised patches are brought back to pixels
        with the **true** mean and deviation of each patch, which the model never knew.
      arrays: what the target keeps in the model state.
    """
    mean, std = target.spec.mean, target.spec.std
    patches = to_float(patchify(images, model.patch_size), mean, std)
    visible = gather(patches, masking.ids_keep)
    pred: Any = model.apply({"params": params}, visible, masking, method=model.predict)
    pixels = from_float(target.to_pixels(arrays, pred.astype(patches.dtype), images), mean, std)
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
