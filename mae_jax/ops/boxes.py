"""Boxes x0, y0, x1, y1 in continuous pixel coordinates: overlap, regression targets, anchors.

A whole image of width W spans 0 to W. Everything is float32: coordinates lose whole pixels in half
precision.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Decoding enlarges a side at most this many times, so that exp cannot overflow.
MAX_LOG_SCALE = math.log(1000 / 16)

Weights = tuple[float, float, float, float]


def area(boxes: jax.Array) -> jax.Array:
    """Areas float32 [...] of `boxes` [..., 4]; 0 if a side is not positive."""
    x0, y0, x1, y1 = _sides(boxes)
    return jnp.maximum(x1 - x0, 0) * jnp.maximum(y1 - y0, 0)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union float32 [N, M] of `a` [N, 4] and `b` [M, 4]; empty boxes have 0."""
    ax0, ay0, ax1, ay1 = (side[:, None] for side in _sides(a))
    bx0, by0, bx1, by1 = _sides(b)
    width = jnp.maximum(jnp.minimum(ax1, bx1) - jnp.maximum(ax0, bx0), 0)
    height = jnp.maximum(jnp.minimum(ay1, by1) - jnp.maximum(ay0, by0), 0)
    both = width * height
    union = area(a)[:, None] + area(b) - both
    return jnp.where(both > 0, both / jnp.where(both > 0, union, 1), 0)


def encode(sources: jax.Array, targets: jax.Array, weights: Weights) -> jax.Array:
    """Regression targets that move each source onto its target (Fast R-CNN, 1504.08083).

    Args:
      sources, targets: boxes [..., 4].
      weights: factors of dx, dy, dw and dh.

    Returns:
      float32 [..., 4], dx, dy, dw, dh. Zeros where either box is empty, as padding is: finite, so
      that a loss can mask it.
    """
    usable = nonempty(sources) & nonempty(targets)
    unit = jnp.array([0, 0, 1, 1], jnp.float32)
    x, y, w, h = _centers(jnp.where(usable[..., None], sources, unit))
    to_x, to_y, to_w, to_h = _centers(jnp.where(usable[..., None], targets, unit))
    deltas = ((to_x - x) / w, (to_y - y) / h, jnp.log(to_w / w), jnp.log(to_h / h))
    return jnp.stack([f * delta for f, delta in zip(weights, deltas, strict=True)], axis=-1)


def decode(deltas: jax.Array, boxes: jax.Array, weights: Weights) -> jax.Array:
    """Moves `boxes` by `deltas`, the inverse of `encode`.

    Args:
      deltas: [..., 4] in any float dtype. dw and dh are clipped to `MAX_LOG_SCALE` after the
        division by their weights.
      boxes: [..., 4]; broadcasts with `deltas`.
      weights: as in `encode`.

    Returns:
      float32 [..., 4].
    """
    x, y, w, h = _centers(boxes)
    deltas = deltas.astype(jnp.float32)
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x, y = x + dx * w, y + dy * h
    w = jnp.exp(jnp.minimum(dw, MAX_LOG_SCALE)) * w
    h = jnp.exp(jnp.minimum(dh, MAX_LOG_SCALE)) * h
    return jnp.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)


def clip(boxes: jax.Array, height: jax.Array | float, width: jax.Array | float) -> jax.Array:
    """Cuts `boxes` [..., 4] off at the borders of an image; the sizes may be traced scalars."""
    x0, y0, x1, y1 = _sides(boxes)
    x0, x1 = jnp.clip(x0, 0, width), jnp.clip(x1, 0, width)
    y0, y1 = jnp.clip(y0, 0, height), jnp.clip(y1, 0, height)
    return jnp.stack([x0, y0, x1, y1], axis=-1)


def nonempty(boxes: jax.Array, min_side: float = 0.0) -> jax.Array:
    """bool [...]: both sides of `boxes` [..., 4] are longer than `min_side`; false for NaN."""
    x0, y0, x1, y1 = _sides(boxes)
    return (x1 - x0 > min_side) & (y1 - y0 > min_side)


def level_anchors(
    grid: tuple[int, int], stride: int, size: float, ratios: Sequence[float]
) -> np.ndarray:
    """Anchors of one level of a pyramid.

    Args:
      grid: rows and columns of the feature map.
      stride: pixels per cell. The anchors of cell (row, column) are centered on pixel
        (row * stride, column * stride), the cell's top left corner.
      size: square root of the anchors' area in pixels.
      ratios: height / width of each anchor of a cell.

    Returns:
      float32 [rows * columns * ratios, 4] in the order row, column, ratio.
    """
    width = np.array([math.sqrt(size**2 / ratio) for ratio in ratios])
    height = width * np.array(ratios)
    cell = np.stack([-width, -height, width, height], axis=1) / 2
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) * stride for n in grid), indexing="ij")
    centers = np.stack([x, y, x, y], axis=-1)
    return (centers[:, :, None] + cell.astype(np.float32)).reshape(-1, 4)


def pyramid_anchors(
    image_size: tuple[int, int],
    strides: Sequence[int] = (4, 8, 16, 32, 64),
    sizes: Sequence[float] = (32, 64, 128, 256, 512),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> list[np.ndarray]:
    """Anchors float32 [n, 4] of each level of a pyramid, for images of `image_size` (H, W).

    A level has `side // stride` rows and columns. The last is every second position of the level
    before it, rounded up.
    """
    grids = [(image_size[0] // stride, image_size[1] // stride) for stride in strides]
    if len(grids) > 1:
        grids[-1] = (-(-grids[-2][0] // 2), -(-grids[-2][1] // 2))
    return [
        level_anchors(grid, stride, size, ratios)
        for grid, stride, size in zip(grids, strides, sizes, strict=True)
    ]


def _sides(boxes: jax.Array) -> tuple[jax.Array, ...]:
    """x0, y0, x1 and y1, float32."""
    boxes = jnp.asarray(boxes, jnp.float32)
    return tuple(boxes[..., i] for i in range(4))


def _centers(boxes: jax.Array) -> tuple[jax.Array, ...]:
    """x and y of the centers, widths and heights."""
    x0, y0, x1, y1 = _sides(boxes)
    width, height = x1 - x0, y1 - y0
    return x0 + width / 2, y0 + height / 2, width, height
