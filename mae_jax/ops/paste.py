"""Puts predicted masks back into their images, on the host.

Equals Detectron2's pasting: the mask is sampled bilinearly at the center of every pixel, with the
exact corners of the box. Whole-pixel corners would cost mask AP.
"""

import numpy as np

THRESHOLD = 0.5


def paste(probs: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks bool [n, height, width] of n objects; `paste_one` needs less memory at a time.

    Args:
      probs: float [n, S, S].
      boxes: float [n, 4] in pixels of the image.
      height, width: size of the image.
    """
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, prob, box in zip(masks, probs, boxes, strict=True):
        _paste_into(mask, prob, box)
    return masks


def paste_one(prob: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mask bool [height, width] of one object; see `paste`."""
    return paste(prob[None], box[None], height, width)[0]


def _paste_into(mask: np.ndarray, prob: np.ndarray, box: np.ndarray) -> None:
    """Sets the pixels of `mask` [height, width] whose probability is at least `THRESHOLD`."""
    x0, y0, x1, y1 = (float(side) for side in box)
    rows, y_weights = _axis(y0, y1, mask.shape[0], prob.shape[0])
    columns, x_weights = _axis(x0, x1, mask.shape[1], prob.shape[1])
    sampled = y_weights @ prob.astype(np.float32) @ x_weights.T
    mask[rows, columns] = sampled >= THRESHOLD


def _axis(low: float, high: float, pixels: int, cells: int) -> tuple[slice, np.ndarray]:
    """The pixels whose centers are inside a box along one axis, and their weights of the cells.

    Outside the box, a mask fades to zero within half a cell, and stays below the threshold.

    Returns:
      A slice of n pixels, and float32 [n, cells].
    """
    first, last = max(np.ceil(low - 0.5), 0), min(np.floor(high - 0.5), pixels - 1)
    if not low < high or last < first:
        return slice(0, 0), np.zeros((0, cells), np.float32)
    inside = slice(int(first), int(last) + 1)
    centers = np.arange(inside.start, inside.stop) + 0.5
    position = (centers - low) / (high - low) * cells - 0.5  # cell i is at position i
    distance = np.abs(position[:, None] - np.arange(cells))
    return inside, np.maximum(1 - distance, 0).astype(np.float32)
