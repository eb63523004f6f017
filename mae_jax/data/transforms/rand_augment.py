"""RandAugment and colour jitter with Pillow, from numbers that are drawn beforehand.

timm's `rand-m9-mstd0.5-inc1` (Cubuk et al., 1909.13719): its operations are Pillow's, so Pillow
does them; TensorFlow has no bicubic shear or rotation and is slower at the rest.
"""

import itertools
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mae_jax.data.options import DataOptions

LAYERS = 2
RAND_DRAWS = 4 * LAYERS  # which operation, whether, how much, in which direction
PROB = 0.5  # of each layer
MAX_LEVEL = 10.0
JITTER_DRAWS = 4  # order; brightness, contrast, saturation
NUM_DRAWS = JITTER_DRAWS + RAND_DRAWS

Pixels = Any  # a Pillow image


class How(NamedTuple):
    """How an operation is applied: level in [0, 1], sign (1 or -1), colour of empty corners."""

    level: float
    sign: int = 1
    fill: tuple[int, ...] = (124, 116, 104)

    @property
    def signed(self) -> float:
        return self.sign * self.level


Operation = Callable[[Pixels, How], Pixels]


def _affine(image: Pixels, how: How, matrix: tuple[float, ...]) -> Pixels:
    bicubic, affine = Image.Resampling.BICUBIC, Image.Transform.AFFINE
    return image.transform(image.size, affine, matrix, bicubic, fillcolor=how.fill)


def _rotate(image: Pixels, how: How) -> Pixels:
    return image.rotate(30 * how.signed, Image.Resampling.BICUBIC, fillcolor=how.fill)


def _posterize(image: Pixels, how: How) -> Pixels:
    bits = 4 - int(4 * how.level)
    # Pillow refuses 0 bits, where timm's older one gave a black image.
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


def _solarize_add(image: Pixels, how: How) -> Pixels:
    more = int(110 * how.level)
    return image.point([min(255, i + more) if i < 128 else i for i in range(256)] * 3)


def _enhance(kind: Any) -> Operation:
    return lambda image, how: kind(image).enhance(1 + 0.9 * how.signed)


# Ranges: timm's auto_augment.py.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, how: ImageOps.autocontrast(image),
    "Equalize": lambda image, how: ImageOps.equalize(image),
    "Invert": lambda image, how: ImageOps.invert(image),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": lambda image, how: ImageOps.solarize(image, 256 - int(256 * how.level)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, how: _affine(image, how, (1, 0.3 * how.signed, 0, 0, 1, 0)),
    "ShearY": lambda image, how: _affine(image, how, (1, 0, 0, 0.3 * how.signed, 1, 0)),
    "TranslateXRel": lambda image, how: _affine(
        image, how, (1, 0, 0.45 * how.signed * image.size[0], 0, 1, 0)
    ),
    "TranslateYRel": lambda image, how: _affine(
        image, how, (1, 0, 0, 0, 1, 0.45 * how.signed * image.size[1])
    ),
}
_NAMES = tuple(OPERATIONS)


def choose(
    draws: Sequence[float] | np.ndarray,
    *,
    magnitude: float,
    std: float,
    fill: tuple[int, ...] = How(0).fill,
) -> list[tuple[str, How]]:
    """Name of the operation, and how to apply it, of each layer that is applied.

    Args:
      draws: RAND_DRAWS numbers uniform in [0, 1).
      magnitude: mean of the magnitude, of at most 10.
      std: its standard deviation.
      fill: colour of corners that an operation leaves empty; timm's is the data set's mean.
    """
    chosen = []
    for which, whether, how_much, direction in np.reshape(draws, (LAYERS, 4)):
        if whether >= PROB:
            continue
        # Open at both ends, where the normal quantile is infinite.
        spread = NormalDist().inv_cdf(min(max(how_much, 2.0**-33), 1 - 2.0**-33))
        level = min(max(magnitude + std * spread, 0.0), MAX_LEVEL) / MAX_LEVEL
        how = How(level, 1 if direction < 0.5 else -1, fill)
        chosen.append((_NAMES[int(which * len(_NAMES))], how))
    return chosen


def rand_augment(image: np.ndarray, draws: np.ndarray, **options: Any) -> np.ndarray:
    """Two layers of RandAugment on uint8 [H, W, 3]; see `choose` for the arguments."""
    chosen = choose(draws, **options)
    if not chosen:
        return image
    result = Image.fromarray(image)
    for name, how in chosen:
        result = OPERATIONS[name](result, how)
    return np.asarray(result)


def color_jitter(image: np.ndarray, draws: np.ndarray, *, strength: float) -> np.ndarray:
    """torchvision's `ColorJitter(strength, strength, strength)` on uint8 [H, W, 3].

    Brightness, contrast and saturation are scaled by factors uniform in 1 -/+ strength (never below
    0), in random order. `draws` are JITTER_DRAWS numbers uniform in [0, 1).
    """
    result = Image.fromarray(image)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    low, high = max(0.0, 1 - strength), 1 + strength
    jobs = [(kind, low + (high - low) * u) for kind, u in zip(kinds, draws[1:], strict=True)]
    orders = list(itertools.permutations(jobs))
    for kind, factor in orders[int(draws[0] * len(orders))]:
        result = kind(result).enhance(factor)
    return np.asarray(result)


def after_crop(options: DataOptions) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """Function (image, draws) -> image of what the options ask for; None where that is nothing.

    Of the draws of a row it takes the last NUM_DRAWS.
    """
    if not options.changes_colors:
        return None

    fill = tuple(min(255, round(255 * value)) for value in options.mean)

    def change(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
        jitter, rand = np.split(draws[-NUM_DRAWS:], [JITTER_DRAWS])
        if options.color_jitter > 0:
            image = color_jitter(image, jitter, strength=options.color_jitter)
        if options.randaug_magnitude > 0:
            magnitude, std = options.randaug_magnitude, options.randaug_std
            image = rand_augment(image, rand, magnitude=magnitude, std=std, fill=fill)
        return image

    return change
