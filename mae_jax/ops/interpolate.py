"""Interpolation as matrix products, with constant matrices of torch's `interpolate`.

Sizes are static, so the matrices are NumPy arrays at trace time, and gradients are matrix products
too. As in torch with `align_corners=False`: half-pixel centers, clamped edges, no antialiasing.
(`jax.image.resize` antialiases when it shrinks, and its cubic kernel has another coefficient.)
"""

import jax
import jax.numpy as jnp
import numpy as np


def linear_matrix(old: int, new: int) -> np.ndarray:
    """Matrix float64 [new, old] of 1D linear interpolation."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(old)), 0)


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Matrix float64 [new, old] of 1D bicubic interpolation, kernel coefficient -0.75."""
    a = -0.75
    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        t = np.abs(at - first - offset)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        columns = np.clip(first + offset, 0, old - 1)
        np.add.at(weights, (np.arange(new), columns), np.where(t <= 1, near, far))
    return weights


def resize_axis(x: jax.Array, axis: int, matrix: np.ndarray) -> jax.Array:
    """Applies an interpolation matrix [new, old] to one axis of x; computed in float32.

    The dtype of `x` is kept.
    """
    # By default, accelerators multiply with 8 or 11 bits.
    exact = jax.lax.Precision.HIGHEST
    wide = jnp.moveaxis(x, axis, -1).astype(jnp.float32)
    y = jnp.einsum("...o,no->...n", wide, jnp.asarray(matrix, jnp.float32), precision=exact)
    return jnp.moveaxis(y, -1, axis).astype(x.dtype)


def resize_positions(table: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Resizes a position table bicubically inside the forward pass, as ViTDet does.

    Args:
      table: [1, 1 + rows * columns, D] for the grid `old`; the class token's row is not used.
      old, new: grids (rows, columns).

    Returns:
      [1, *new, D].
    """
    grid = table[:, 1:].reshape(1, *old, table.shape[-1])
    for axis in (0, 1):
        if old[axis] != new[axis]:
            grid = resize_axis(grid, 1 + axis, bicubic_matrix(old[axis], new[axis]))
    return grid


def relative_table(table: jax.Array, size: int) -> jax.Array:
    """Rows of a table of relative positions for `size` queries and keys on one axis.

    Args:
      table: [2 * L - 1, ...], one entry for each offset. If L differs from `size`, the table is
        resized linearly to 2 * size - 1 entries.
      size: queries and keys.

    Returns:
      [size, size, ...]; entry [q, k] is for the offset q - k.
    """
    if table.shape[0] != 2 * size - 1:
        table = resize_axis(table, 0, linear_matrix(table.shape[0], 2 * size - 1))
    places = np.arange(size)
    return table[places[:, None] - places + size - 1]
