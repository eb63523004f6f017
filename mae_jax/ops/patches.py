"""Conversion between images and patch vectors, and selection of patches by index.

As in the official `patchify`, a patch vector is ordered (row in patch, column in patch, channel)
with the channel fastest, and the patches of an image are in row-major order.
"""

import einops
import jax
import jax.numpy as jnp


def grid_size(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Number of patches (rows, columns) of an image.

    Raises:
      ValueError: the image size is not a multiple of the patch size; names the nearest sizes.
    """
    for name, size, patch in zip(("height", "width"), image_size, patch_size, strict=True):
        if patch < 1 or size < patch or size % patch:
            low = max(size // max(patch, 1), 1) * patch
            raise ValueError(
                f"image {name} {size} is not divisible by patch size {patch}; "
                f"nearest: {low} or {low + patch}"
            )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def patchify(images: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """Images [B, H, W, C] to patch vectors [B, L, ph*pw*C] of the same dtype."""
    gh, gw = grid_size((images.shape[1], images.shape[2]), patch_size)
    return einops.rearrange(
        images,
        "b (gh ph) (gw pw) c -> b (gh gw) (ph pw c)",
        gh=gh,
        gw=gw,
        ph=patch_size[0],
        pw=patch_size[1],
    )


def unpatchify(patches: jax.Array, patch_size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """Patch vectors [B, L, ph*pw*C] of a grid (rows, columns) to images [B, H, W, C]."""
    return einops.rearrange(
        patches,
        "b (gh gw) (ph pw c) -> b (gh ph) (gw pw) c",
        gh=grid[0],
        gw=grid[1],
        ph=patch_size[0],
        pw=patch_size[1],
    )


def patch_means(pixels: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """Mean of `pixels` [B, H, W] over each patch, float32 [B, L]."""
    return patchify(pixels[..., None].astype(jnp.float32), patch_size).mean(axis=2)


def gather(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Selects rows `ids` [B, K] of each example of `x` [B, N, D]: [B, K, D]."""
    return jnp.take_along_axis(x, ids[:, :, None], axis=1)


def to_float(patches: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalizes patch vectors, or images, [..., k*C] per channel: float32 (x - mean) / std.

    uint8 is first scaled to [0, 1], like torchvision's ToTensor. Other dtypes are used as they are,
    so mean and std must be in the same units.
    """
    x = patches.astype(jnp.float32)
    if patches.dtype == jnp.uint8:
        x = x / 255.0
    repeats = patches.shape[-1] // len(mean)
    return (x - jnp.tile(jnp.array(mean, jnp.float32), repeats)) / jnp.tile(
        jnp.array(std, jnp.float32), repeats
    )


def from_float(patches: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Inverse of `to_float`, except that uint8 pixels come back as floats in [0, 1]."""
    repeats = patches.shape[-1] // len(mean)
    std_row = jnp.tile(jnp.array(std, jnp.float32), repeats)
    return patches * std_row + jnp.tile(jnp.array(mean, jnp.float32), repeats)
