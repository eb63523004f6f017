"""What the decoder is asked to predict, and how far off it is (paper section 3, official code)."""

import jax
import jax.numpy as jnp

EPS = 1e-6


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [..., 1] of each patch vector [..., P], all channels together.

    The variance is the unbiased one (divided by P - 1) and 1e-6 is added to it inside the root, as
    the official code does.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    var = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(var + EPS)


def pixel_target(patches: jax.Array, *, normalize: bool) -> jax.Array:
    """Target for normalised pixels `patches` float32 [..., P].

    With `normalize` each patch is scaled by its own statistics (`norm_pix_loss`, paper table 1d).
    """
    if not normalize:
        return patches
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def undo_normalize(pred: jax.Array, patches: jax.Array) -> jax.Array:
    """Predicted normalised patches -> pixels, by the statistics of the true `patches`."""
    mean, std = patch_statistics(patches)
    return pred * std + mean


def reconstruction_loss(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of each image, float32 [B], over its masked patches [B, M, P]."""
    error = jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32))
    return error.mean(axis=(1, 2))


def baseline_loss(target: jax.Array) -> jax.Array:
    """Loss [B] of predicting each patch of `target` [B, M, P] by its own mean: the bar to beat."""
    return target.var(axis=-1).mean(axis=-1)
