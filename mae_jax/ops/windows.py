"""Splits feature maps into windows for local attention, and joins them again."""

import einops
import jax
import jax.numpy as jnp


def padded_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """(H, W) rounded up to multiples of the window."""
    return -(-size[0] // window) * window, -(-size[1] // window) * window


def partition(x: jax.Array, window: int) -> jax.Array:
    """[B, H, W, D] -> [B * windows, window, window, D], windows of an image in row-major order.

    The map is padded with zeros at the bottom and right to multiples of the window.
    """
    height, width = x.shape[1:3]
    padded = padded_size((height, width), window)
    x = jnp.pad(x, ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
    return einops.rearrange(x, "b (r i) (c j) d -> (b r c) i j d", i=window, j=window)


def unpartition(windows: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Inverse of `partition` for maps of size (H, W); removes the padding."""
    window = windows.shape[1]
    height, width = padded_size(size, window)
    rows, columns = height // window, width // window
    x = einops.rearrange(windows, "(b r c) i j d -> b (r i) (c j) d", r=rows, c=columns)
    return x[:, : size[0], : size[1]]
