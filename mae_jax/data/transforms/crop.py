"""Which part of an image is shown: random crops in training, the center in evaluation.

Computed without the pixels, so that the host's pipeline and image sets on the devices agree.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.transforms.resize import mirrored, resize

CROP = 224 / 256  # share of the short side of a resized image that is shown
TRIES = 10
NUM_DRAWS = 2 * TRIES + 3  # area and ratio of each try; top, left, flip
FLIP = 2 * TRIES + 2
Box = tuple[int, int, int, int]  # top, left, height, width
Pair = tuple[int, int]  # of rows and columns
Range = tuple[float, float]
# Plain floats, not arrays: the overhead of NumPy is larger than the few operations below.
Draws = Sequence[float]
ImageTransform = Callable[[np.ndarray, np.ndarray], np.ndarray]


class View(NamedTuple):
    """Which part of an image is shown, and how large.

    The `size` pixels at `start` are resized to `full` pixels, of which the view is the part that
    begins at `offset`; with `mirror`, left and right are then exchanged.
    """

    start: Pair
    size: Pair
    full: Pair
    offset: Pair
    mirror: bool


def choose_view(
    height: int, width: int, draws: Draws, *, options: DataOptions, target: Pair, train: bool
) -> View:
    """The view of one image.

    Args:
      height, width: size of the image.
      draws: at least NUM_DRAWS numbers uniform in [0, 1); not used in evaluation.
      options: `config.data`.
      target: (H, W) of the view.
      train: False, like `data.augment` "none", is the evaluation view: resize and center crop.
    """
    if not train or options.augment == "none":
        full = eval_size(height, width, target)
        # torchvision's CenterCrop: int(round(gap / 2)), which rounds halves to even.
        offset = round((full[0] - target[0]) / 2), round((full[1] - target[1]) / 2)
        return View((0, 0), (height, width), full, offset, False)
    mirror = options.hflip and draws[FLIP] < 0.5
    if options.augment == "crop_fixed":
        full = cover_size(height, width, target, CROP)
        return View((0, 0), (height, width), full, _place(target, full, draws), mirror)
    choose = BOXES[options.augment]
    top, left, h, w = choose(
        height, width, draws, scale=options.crop_scale, ratio=options.crop_ratio
    )
    return View((top, left), (h, w), target, (0, 0), mirror)


def random_box(height: int, width: int, draws: Draws, *, scale: Range, ratio: Range) -> Box:
    """torchvision's RandomResizedCrop box: (top, left, height, width).

    The first that fits of ten draws of area ~ U(scale) and log-uniform width / height; otherwise
    the largest centered box within the ratio.

    Args:
      height, width: size of the image.
      draws: NUM_DRAWS numbers uniform in [0, 1).
      scale, ratio: (low, high) of the area share and of width / height.
    """
    for k in range(TRIES):
        tall, wide = _sides(height, width, draws[k], draws[TRIES + k], scale=scale, ratio=ratio)
        if 0 < tall <= height and 0 < wide <= width:
            return *_place((tall, wide), (height, width), draws), tall, wide
    # No draw fits: the whole image, center-cropped to the nearest allowed ratio.
    tall = max(1, min(height, round(width / ratio[0])))
    wide = max(1, min(width, round(height * ratio[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def random_box_once(height: int, width: int, draws: Draws, *, scale: Range, ratio: Range) -> Box:
    """Box of a single draw of area and ratio, clipped to the image: (top, left, height, width).

    For the paper's linear probing, following BYOL. Arguments as in `random_box`; only the first
    draws are used. Reference: `RandomResizedCrop` of facebookresearch/mae, util/crop.py.
    """
    tall, wide = _sides(height, width, draws[0], draws[TRIES], scale=scale, ratio=ratio)
    tall, wide = min(max(tall, 1), height), min(max(wide, 1), width)
    return *_place((tall, wide), (height, width), draws), tall, wide


def _sides(
    height: int, width: int, area: float, aspect: float, *, scale: Range, ratio: Range
) -> tuple[int, int]:
    """Height and width of a box, from uniform numbers for its area and its shape."""
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + (high - low) * aspect)
    return round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def _place(part: Pair, whole: Pair, draws: Draws) -> Pair:
    """Top and left of a part of the given size, anywhere in the whole."""
    top = int(draws[2 * TRIES] * (whole[0] - part[0] + 1))
    return top, int(draws[2 * TRIES + 1] * (whole[1] - part[1] + 1))


# `config.data.augment` -> how to choose a box of random size, which is then resized.
BOXES = {"crop": random_box, "crop_once": random_box_once}
# The others resize the whole image; `crop_fixed` then cuts out a box of fixed size.
AUGMENTS = (*BOXES, "crop_fixed", "none")


def eval_size(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Size to resize to before the center crop, as in MAE's evaluation transform.

    For a square target T the short side becomes int(T / crop), with crop = 224/256 up to 224 pixels
    and 1 above, and the long side keeps the aspect ratio, rounded down. For other targets (whose
    short side decides the crop) the image just covers the target enlarged in the same way.

    Reference: `build_transform` of facebookresearch/mae, util/datasets.py.
    """
    return cover_size(height, width, target, CROP if min(target) <= 224 else 1.0)


def cover_size(height: int, width: int, target: Pair, crop: float) -> Pair:
    """Size that just covers the target divided by `crop`, in the image's aspect ratio."""
    cover_h, cover_w = int(target[0] / crop), int(target[1] / crop)
    if cover_h * width >= cover_w * height:  # the height is the limit
        return cover_h, cover_h * width // height
    return cover_w * height // width, cover_w


def view_transform(
    options: DataOptions, *, image_size: tuple[int, int], train: bool
) -> ImageTransform:
    """A function that applies `choose_view`: (image [h, w, C], draws) -> [H, W, C]."""

    exact = options.exact_resize(train=train)

    def transform(image, draws):
        numbers = draws[:NUM_DRAWS].tolist()
        height, width = image.shape[:2]
        view = choose_view(height, width, numbers, options=options, target=image_size, train=train)
        (top, left), (h, w) = view.start, view.size
        crop = image[top : top + h, left : left + w]
        result = resize(crop, view.full, antialias=options.resize_antialias, exact=exact)
        top, left = view.offset
        result = result[top : top + image_size[0], left : left + image_size[1]]
        return mirrored(result) if view.mirror else result

    return transform
