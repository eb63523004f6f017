"""ROIAlign (Mask R-CNN, 1703.06870) as matrix products, and mask targets made with it.

Bilinear sampling on a regular grid is separable: the output of a box is its weights of the rows,
times the features, times its weights of the columns. This equals Detectron2's setting,
`aligned=True` and `sampling_ratio=0`: coordinates are shifted by half a cell, and a bin has as many
samples along an axis as it is cells long, rounded up. Boxes have no gradient.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mae_jax.ops.boxes import area, nonempty

STRIDES = (4, 8, 16, 32)  # of p2 to p5
# Boxes of at least this area use the next level (FPN, 1612.03144, equation 1).
LEVEL_AREAS = (112**2, 224**2, 448**2)
MASKS_AT_A_TIME = 16  # bitmaps that are float32 at the same time
EXACT = jax.lax.Precision.HIGHEST  # by default, accelerators round float32 to 8 or 11 bits


def roi_align(features: jax.Array, boxes: jax.Array, *, scale: float, size: int) -> jax.Array:
    """Averages features over the `size` x `size` bins of each box.

    Args:
      features: [H, W, C].
      boxes: [R, 4]; may reach outside. Those that are empty or not finite give zeros.
      scale: cells per unit of the boxes, 1 / stride.
      size: number of bins P along each axis.

    Returns:
      [R, P, P, C] in the dtype of `features`. Memory for [R, P, W, C] is needed on the way.
    """
    return _pool(features, *_weights(boxes, features.shape[:2], scale, size))


def levels(boxes: jax.Array) -> jax.Array:
    """Level of the pyramid, int32 [...] from 2 to 5, that `boxes` [..., 4] are pooled from."""
    large = area(boxes)[..., None] >= jnp.array(LEVEL_AREAS)
    return 2 + large.sum(axis=-1, dtype=jnp.int32)


def pyramid_roi_align(
    pyramid: Sequence[jax.Array], boxes: jax.Array, *, size: int, chunk: int
) -> jax.Array:
    """`roi_align` of one image, each box on the level of its size.

    Args:
      pyramid: features [H_l, W_l, C] of p2, p3, p4 and p5.
      boxes: [R, 4] in pixels.
      size: number of bins P along each axis.
      chunk: boxes pooled at a time, which bounds the memory needed to [chunk, P, W, C].

    Returns:
      [R, P, P, C].
    """
    number, channels = len(boxes), pyramid[0].shape[-1]
    chunk = min(chunk, number)
    boxes = jnp.pad(jax.lax.stop_gradient(boxes), ((0, -number % chunk), (0, 0)))
    order = jnp.argsort(levels(boxes))  # most chunks then need only one level

    def pool(part: jax.Array) -> jax.Array:
        result = jnp.zeros((chunk, size, size, channels), pyramid[0].dtype)
        for level, (features, stride) in enumerate(zip(pyramid, STRIDES, strict=True), 2):
            here = levels(part) == level
            boxes_here = jnp.where(here[:, None], part, 0)  # empty boxes give zeros
            add = functools.partial(_add_pooled, scale=1 / stride, size=size)
            result = jax.lax.cond(here.any(), add, _skip, result, features, boxes_here)
        return result

    pooled = jax.lax.map(pool, boxes[order].reshape(-1, chunk, 4))
    back = jnp.argsort(order)[:number]
    return pooled.reshape(-1, size, size, channels).at[back].get(unique_indices=True)


def mask_targets(
    packed: jax.Array, matched: jax.Array, boxes: jax.Array, *, size: int = 28
) -> jax.Array:
    """Masks of objects as their boxes see them, the targets of the mask head.

    Args:
      packed: uint8 [G, H, W / 8], the objects' bitmaps as by `np.packbits(axis=-1)`.
      matched: int32 [F], the object of each box.
      boxes: [F, 4] in pixels of the bitmaps.
      size: rows and columns of the targets.

    Returns:
      bool [F, size, size]: whether ROIAlign of the bitmap is at least 0.5.
    """

    def target(of: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, box = of
        bitmap = jnp.unpackbits(packed[index], axis=-1).astype(jnp.float32)
        rows, columns = _weights(box[None], bitmap.shape, 1.0, size)
        covered = jnp.matmul(rows[0], bitmap, precision=EXACT)
        return jnp.matmul(covered, columns[0].T, precision=EXACT) >= 0.5

    return jax.lax.map(target, (matched, boxes), batch_size=min(MASKS_AT_A_TIME, len(boxes)))


def axis_weights(low: jax.Array, high: jax.Array, *, size: int, length: int) -> jax.Array:
    """Weights of the cells along one axis in each bin of each box.

    A sample between two cells is divided between them. A sample up to one cell outside the first
    or last cell equals that cell; farther out, it is zero. Samples are not enumerated: how many lie
    between two cells follows from their spacing, and their mean position gives both cells' shares.

    Args:
      low, high: [R], the ends of the boxes; cell i is at position i.
      size: number of bins P.
      length: number of cells L.

    Returns:
      float32 [R, P, L], which sum to the share of the bin's samples that are not zero.
    """
    low, high = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (low, high))
    bin_width = ((high - low) / size)[:, None, None]
    samples = jnp.maximum(jnp.ceil(bin_width), 0)
    step = jnp.where(samples > 0, bin_width / jnp.maximum(samples, 1), 1)
    bins = jnp.arange(size, dtype=jnp.float32)[:, None]
    first = low[:, None, None] + bins * bin_width + step / 2  # [R, P, 1]

    # Samples below each of the positions -1 to L; a sample exactly at L still counts.
    position = jnp.arange(-1, length + 1, dtype=jnp.float32)
    index = (position - first) / step
    below = jnp.where(position == length, jnp.floor(index) + 1, jnp.ceil(index))
    below = jnp.clip(below, 0, samples)  # [R, P, L + 2]

    # Interval k is between positions k - 1 and k: [R, P, L + 1].
    count = below[..., 1:] - below[..., :-1]
    mean = first + step * (below[..., 1:] + below[..., :-1] - 1) / 2
    start = position[:-1]
    share = jnp.clip(mean - start, 0, 1)  # of cell k; the rest is of cell k - 1
    share = jnp.where(start == -1, 1, jnp.where(start == length - 1, 0, share))
    weights = (count * share)[..., :-1] + (count * (1 - share))[..., 1:]
    return weights / jnp.maximum(samples, 1)


def _weights(
    boxes: jax.Array, shape: tuple[int, ...], scale: float, size: int
) -> tuple[jax.Array, jax.Array]:
    """`axis_weights` of rows [R, P, H] and columns [R, P, W]."""
    boxes = jnp.asarray(boxes, jnp.float32)
    usable = nonempty(boxes) & jnp.isfinite(boxes).all(axis=-1)
    x0, y0, x1, y1 = (jnp.where(usable[:, None], boxes, 0) * scale - 0.5).T
    rows = axis_weights(y0, y1, size=size, length=shape[0])
    columns = axis_weights(x0, x1, size=size, length=shape[1])
    return rows, columns


def _pool(features: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    rows, columns = rows.astype(features.dtype), columns.astype(features.dtype)
    pooled = jnp.einsum("rph,hwc->rpwc", rows, features, precision=EXACT)
    # With p as a batch axis, `pooled`, by far the largest array, is not transposed.
    columns = jnp.broadcast_to(columns[:, None], (*rows.shape[:2], *columns.shape[1:]))
    return jnp.einsum("rpqw,rpwc->rpqc", columns, pooled, precision=EXACT)


def _add_pooled(
    result: jax.Array, features: jax.Array, boxes: jax.Array, *, scale: float, size: int
) -> jax.Array:
    return result + roi_align(features, boxes, scale=scale, size=size)


def _skip(result: jax.Array, *_: jax.Array) -> jax.Array:
    return result
