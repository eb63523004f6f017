"""Crop, resize and flip one image, with torchvision's geometry and Pillow's pixels."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mae_jax.data.geometry import FLIP, NUM_DRAWS, TRIES
from mae_jax.data.options import DataOptions
from mae_jax.data.resize import mirrored, resize

Box = tuple[int, int, int, int]  # top, left, height, width
Range = tuple[float, float]
# Plain floats in loops below, not arrays: numpy takes longer to begin than these take to end.
Draws = Sequence[float]


def random_box(height: int, width: int, draws: Draws, *, scale: Range, ratio: Range) -> Box:
    """torchvision's RandomResizedCrop box: (top, left, height, width).

    Ten tries of area ~ U(scale) and log-uniform width / height, the first that fits wins; else the
    largest centred box within the ratio.

    Args:
      height, width: size of the image.
      draws: NUM_DRAWS numbers uniform in [0, 1).
      scale, ratio: (low, high) of the area share and of width / height.
    """
    for k in range(TRIES):
        tall, wide = _sides(height, width, draws[k], draws[TRIES + k], scale=scale, ratio=ratio)
        if 0 < tall <= height and 0 < wide <= width:
            return _placed(tall, wide, height, width, draws)
    # No try fits: the whole image, cut to the nearest allowed ratio about its centre.
    tall = max(1, min(height, round(width / ratio[0])))
    wide = max(1, min(width, round(height * ratio[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def random_box_once(height: int, width: int, draws: Draws, *, scale: Range, ratio: Range) -> Box:
    """Box of one draw of area and ratio, cut to the image: (top, left, height, width).

    What the paper's linear probing uses, after BYOL; arguments as `random_box`, of whose draws it
    takes the first. Reference: `RandomResizedCrop` of facebookresearch/mae, util/crop.py.
    """
    tall, wide = _sides(height, width, draws[0], draws[TRIES], scale=scale, ratio=ratio)
    return _placed(min(max(tall, 1), height), min(max(wide, 1), width), height, width, draws)


def _sides(
    height: int, width: int, area: float, aspect: float, *, scale: Range, ratio: Range
) -> tuple[int, int]:
    """Height and width of a box, from uniform numbers for its area and its shape."""
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + (high - low) * aspect)
    return round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def _placed(tall: int, wide: int, height: int, width: int, draws: Draws) -> Box:
    top = int(draws[2 * TRIES] * (height - tall + 1))
    return top, int(draws[2 * TRIES + 1] * (width - wide + 1)), tall, wide


# `config.data.augment` -> how a training image is cropped.
BOXES = {"crop": random_box, "crop_once": random_box_once}


def eval_size(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Size to resize to before the centre crop, as MAE's evaluation transform.

    For a square target T the short side becomes int(T / crop), crop = 224/256 up to 224 pixels and
    1 above, and the long side keeps the shape, rounded down. For any other target (whose short
    side decides on the crop) the image just covers the target enlarged in the same way.

    Reference: `build_transform` of facebookresearch/mae, util/datasets.py.
    """
    crop = 224 / 256 if min(target) <= 224 else 1.0
    cover_h, cover_w = int(target[0] / crop), int(target[1] / crop)
    if cover_h * width >= cover_w * height:  # the height is what limits
        return cover_h, cover_h * width // height
    return cover_w * height // width, cover_w


Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]


def train_transform(options: DataOptions, *, image_size: tuple[int, int]) -> Transform:
    """Random resized crop and flip: (image [h, w, C], draws) -> [H, W, C]."""
    choose_box = BOXES[options.augment]
    scale, ratio = options.crop_scale, options.crop_ratio

    def transform(image, draws):
        numbers = draws[:NUM_DRAWS].tolist()
        height, width = image.shape[:2]
        top, left, h, w = choose_box(height, width, numbers, scale=scale, ratio=ratio)
        crop = image[top : top + h, left : left + w]
        result = resize(crop, image_size, antialias=options.resize_antialias)
        return mirrored(result) if options.hflip and numbers[FLIP] < 0.5 else result

    return transform


def eval_transform(options: DataOptions, *, image_size: tuple[int, int]) -> Transform:
    """Resize and centre crop: (image [h, w, C], ignored) -> [H, W, C]."""

    def transform(image, draws):
        del draws
        size = eval_size(image.shape[0], image.shape[1], image_size)
        whole = resize(image, size, antialias=options.resize_antialias)
        # torchvision's CenterCrop: int(round(gap / 2)), where halves go to the even number.
        top, left = (round((a - b) / 2) for a, b in zip(size, image_size, strict=True))
        return whole[top : top + image_size[0], left : left + image_size[1]]

    return transform
