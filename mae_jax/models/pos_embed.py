"""Fixed 2D sine-cosine position tables (official `util/pos_embed.py`)."""

import numpy as np

from mae_jax.ops.interpolate import bicubic_matrix


def _sincos_1d(positions: np.ndarray, dim: int) -> np.ndarray:
    """float64 [N, dim]: the sines of all frequencies, then the cosines (not interleaved)."""
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angles = positions[:, None] * omega[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(dim: int, grid: tuple[int, int]) -> np.ndarray:
    """Position table float64 [1 + rows * columns, dim]; row 0, the class token's, is zero.

    The first half of each vector encodes the **column**, the second half the row: released weights
    depend on this order.

    Raises:
      ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"width {dim} is not a multiple of 4, as sine-cosine positions need")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    table = np.concatenate(
        [_sincos_1d(columns.reshape(-1), dim // 2), _sincos_1d(rows.reshape(-1), dim // 2)], axis=1
    )
    return np.concatenate([np.zeros((1, dim)), table], axis=0)


def resize_table(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Resizes a position table [1, 1 + rows * columns, D] to another grid; float32.

    Bicubic like torch's `interpolate(mode="bicubic", align_corners=False)`, which the official
    `interpolate_pos_embed` uses: no antialiasing, kernel coefficient -0.75, clamped edges. The
    class token's row is kept.

    Raises:
      ValueError: the length of the table does not match the grid `old`.
    """
    if table.shape[1] != 1 + old[0] * old[1]:
        raise ValueError(f"a table of {table.shape[1]} rows does not match a {old} grid")
    if old == new:
        return table.astype(np.float32)
    grid = table[0, 1:].reshape(*old, -1).astype(np.float64)
    grid = np.einsum("rh,hwd->rwd", bicubic_matrix(old[0], new[0]), grid)
    grid = np.einsum("cw,rwd->rcd", bicubic_matrix(old[1], new[1]), grid)
    patches = grid.reshape(1, new[0] * new[1], -1)
    return np.concatenate([table[:, :1], patches], axis=1).astype(np.float32)
