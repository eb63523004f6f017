"""Images to patch vectors and back, and picking patches by index.

A patch vector is ordered (row in patch, column in patch, channel), channel fastest, and patches are
ordered row by row, as in the official code's `patchify`.
"""

import einops
import jax
import jax.numpy as jnp


def grid_size(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Number of patches (rows, columns) of an image.

    Raises:
      ValueError: the image is not a whole number of patches; the text names the nearest sizes.
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
    """Cuts images [B, H, W, C] into patch vectors [B, L, ph*pw*C] of the same dtype."""
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
    """Patch vectors [B, L, ph*pw*C] of a (rows, columns) grid -> images [B, H, W, C]."""
    return einops.rearrange(
        patches,
        "b (gh gw) (ph pw c) -> b (gh ph) (gw pw) c",
        gh=grid[0],
        gw=grid[1],
        ph=patch_size[0],
        pw=patch_size[1],
    )


def patch_means(pixels: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """A map of pixels [B, H, W] as one of patches: the mean over each, float32 [B, L]."""
    return patchify(pixels[..., None].astype(jnp.float32), patch_size).mean(axis=2)


def gather(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows `ids` [B, K] of each example of `x` [B, N, D] -> [B, K, D]."""
    return jnp.take_along_axis(x, ids[:, :, None], axis=1)


def to_float(patches: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalises patch vectors [..., ph*pw*C] per channel: float32 (x - mean) / std.

    uint8 pixels are first scaled to [0, 1], as torchvision's ToTensor does; pixels of any other
    dtype are taken in their own units, so mean and std are then in those units too.
    """
    x = patches.astype(jnp.float32)
    if patches.dtype == jnp.uint8:
        x = x / 255.0
    repeats = patches.shape[-1] // len(mean)
    return (x - jnp.tile(jnp.array(mean, jnp.float32), repeats)) / jnp.tile(
        jnp.array(std, jnp.float32), repeats
    )


def from_float(patches: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Undoes `to_float`, but for the scaling of uint8: those come back in units of [0, 1]."""
    repeats = patches.shape[-1] // len(mean)
    std_row = jnp.tile(jnp.array(std, jnp.float32), repeats)
    return patches * std_row + jnp.tile(jnp.array(mean, jnp.float32), repeats)
