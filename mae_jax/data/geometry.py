"""Where each image of a batch is cropped, in NumPy: the rules of `transforms`, a row per image.

Numbers are equal to those of the rules for one image: a run sees the same crops either way.
"""

import math
from typing import NamedTuple

import numpy as np

TRIES = 10
NUM_DRAWS = 2 * TRIES + 3  # area and ratio of each try; top, left, flip
FLIP = 2 * TRIES + 2

Range = tuple[float, float]


class View(NamedTuple):
    """What of each image is seen, and how large; rows and columns, all int32 [b, 2].

    The box of `size` pixels at `start` is resized to `full` pixels, of which those from `offset` on
    are the view.
    """

    start: np.ndarray
    size: np.ndarray
    full: np.ndarray
    offset: np.ndarray


def random_boxes(sizes: np.ndarray, draws: np.ndarray, *, scale: Range, ratio: Range) -> np.ndarray:
    """`transforms.random_box` of many images: int32 [b, 4] of top, left, height, width.

    Args:
      sizes: int32 [b, 2], height and width of each image.
      draws: float64 [b, NUM_DRAWS or more], uniform in [0, 1).
      scale, ratio: (low, high) of the area share and of width / height.
    """
    size = sizes.astype(np.int64)
    sides = _sides(size, draws[:, :TRIES], draws[:, TRIES : 2 * TRIES], scale=scale, ratio=ratio)
    fits = np.all((sides > 0) & (sides <= size[:, None]), axis=2)
    first = np.argmax(fits, axis=1)
    some = np.any(fits, axis=1)[:, None]

    height, width = size.T
    most = np.stack([np.round(width / ratio[0]), np.round(height * ratio[1])], axis=1)
    full = np.maximum(np.minimum(size, most.astype(np.int64)), 1)
    box = np.where(some, sides[np.arange(len(size)), first], full)
    start = np.where(some, _offset(size, box, draws), (size - full) // 2)
    return np.concatenate([start, box], axis=1).astype(np.int32)


def random_boxes_once(
    sizes: np.ndarray, draws: np.ndarray, *, scale: Range, ratio: Range
) -> np.ndarray:
    """`transforms.random_box_once` of many images; arguments and result as `random_boxes`."""
    size = sizes.astype(np.int64)
    sides = _sides(size, draws[:, :1], draws[:, TRIES : TRIES + 1], scale=scale, ratio=ratio)
    box = np.clip(sides[:, 0], 1, size)
    return np.concatenate([_offset(size, box, draws), box], axis=1).astype(np.int32)


BOXES = {"crop": random_boxes, "crop_once": random_boxes_once}


def _sides(size, area_draws, ratio_draws, *, scale: Range, ratio: Range) -> np.ndarray:
    """Height and width of every try: int64 [b, tries, 2]."""
    height, width = size.astype(np.float64)[:, :, None].swapaxes(0, 1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draws)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * ratio_draws)
    sides = np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=2)
    return np.round(sides).astype(np.int64)


def _offset(size: np.ndarray, box: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return (draws[:, 2 * TRIES : 2 * TRIES + 2] * (size - box + 1)).astype(np.int64)


def crop_views(boxes: np.ndarray, target: tuple[int, int]) -> View:
    """Boxes int32 [b, 4] resized to `target`."""
    full = np.broadcast_to(np.asarray(target, np.int32), (len(boxes), 2))
    return View(boxes[:, :2], boxes[:, 2:], full, np.zeros_like(full))


def eval_views(sizes: np.ndarray, target: tuple[int, int]) -> View:
    """Evaluation's view of images of `sizes` int32 [b, 2]; see `transforms.eval_transform`."""
    crop = 224 / 256 if min(target) <= 224 else 1.0
    cover_h, cover_w = int(target[0] / crop), int(target[1] / crop)
    height, width = sizes.astype(np.int64).T
    by_height = cover_h * width >= cover_w * height
    full = np.where(
        by_height[:, None],
        np.stack([np.full_like(height, cover_h), cover_h * width // height], axis=1),
        np.stack([cover_w * height // width, np.full_like(width, cover_w)], axis=1),
    )
    offset = np.round((full - np.asarray(target)) / 2)
    return View(np.zeros_like(sizes), sizes, full.astype(np.int32), offset.astype(np.int32))
