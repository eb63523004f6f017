"""What a masked autoencoder makes of images whose patches are partly hidden (paper figures 2 to 4)."""

from typing import Any, NamedTuple

import jax

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

    With `normalize` (the model predicts normalised patches) the prediction is brought back to pixels
    with the **true** mean and deviation of each patch, which the model never knew.
    """
    patches = to_float(patchify(images, model.patch_size), mean, std)
    visible = gather(patches, masking.ids_keep)
    pred = model.apply({"params": params}, visible, masking, method=model.predict)
    pred = pred.astype(patches.dtype)
    if normalize:
        pred = undo_normalize(pred, patches)
    pixels = from_float(pred, mean, std)
    original = from_float(patches, mean, std)
    hidden = masking.mask[:, :, None]
    grey = GREY if images.dtype == "uint8" else from_float(patches * 0, mean, std)
    views = (
        original,
        original * (1 - hidden) + grey * hidden,
        pixels,
        original * (1 - hidden) + pixels * hidden,
    )
    return Reconstruction(*(unpatchify(v, model.patch_size, model.grid) for v in views))
