"""Fixed two-dimensional sine-cosine position tables (official `util/pos_embed.py`)."""

import numpy as np


def _sincos_1d(positions: np.ndarray, dim: int) -> np.ndarray:
    """float64 [N, dim]: sines of all frequencies, then cosines (not interleaved)."""
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
        raise ValueError(f"width {dim} is not a multiple of 4, which sine-cosine positions need")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    table = np.concatenate(
        [_sincos_1d(columns.reshape(-1), dim // 2), _sincos_1d(rows.reshape(-1), dim // 2)], axis=1
    )
    return np.concatenate([np.zeros((1, dim)), table], axis=0)
