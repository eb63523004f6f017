"""Reconstructions of masked images (paper figures 2 to 4)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.targets import Target
from mae_jax.ops.masking import Masking
from mae_jax.ops.patches import from_float, gather, patchify, to_float, unpatchify

GRAY = 0.5


class Reconstruction(NamedTuple):
    """Images float32 [B, H, W, C], in the units of the input; uint8 input is scaled to [0, 1].

    Only masked patches are trained unless `target.loss_on` is "all", so `predicted` is arbitrary in
    visible patches.
    """

    original: jax.Array
    masked: jax.Array
    """The original with masked patches in gray."""
    predicted: jax.Array
    """The decoder's output for every patch."""
    pasted: jax.Array
    """The decoder's output in masked patches, the original elsewhere."""
    hidden: jax.Array
    """Where patches are masked: bool [B, H, W, 1]."""
    target: jax.Array | None
    """The true target, rendered like `predicted`; None if the target is the image."""


def reconstruct(
    model: MaskedAutoencoder,
    params: Any,
    images: jax.Array,
    masking: Masking,
    target: Target,
    arrays: Any,
) -> Reconstruction:
    """Masks `images` and predicts all of their patches.

    Args:
      model: the autoencoder.
      params: its parameters.
      images: [B, H, W, C], uint8, or float in the units of the target's mean and std.
      masking: the patches to mask.
      target: what the model was trained to predict. Normalized patches are converted back to pixels
        with the **true** mean and standard deviation of each patch, which the model never sees.
      arrays: the target's arrays from the model state.
    """
    mean, std = target.spec.mean, target.spec.std
    patches = to_float(patchify(images, model.patch_size), mean, std)
    visible = gather(patches, masking.ids_keep)
    pred: Any = model.apply({"params": params}, visible, masking, method=model.predict)
    pixels = from_float(target.to_pixels(arrays, pred.astype(patches.dtype), images), mean, std)
    truth = target.true_pixels(arrays, images)
    hidden = masking.mask[:, :, None]
    original = patchify(images, model.patch_size).astype(patches.dtype)
    if images.dtype == jnp.uint8:
        original, gray = original / 255, GRAY
    else:
        gray = from_float(jnp.zeros_like(patches[:1, :1]), mean, std)

    def image(patches: jax.Array) -> jax.Array:
        return unpatchify(patches, model.patch_size, model.grid)

    return Reconstruction(
        original=image(original),
        masked=image(original * (1 - hidden) + gray * hidden),
        predicted=image(pixels),
        pasted=image(original * (1 - hidden) + pixels * hidden),
        hidden=image(jnp.broadcast_to(hidden, patches.shape))[..., :1] > 0,
        target=None if truth is None else image(from_float(truth, mean, std)),
    )
