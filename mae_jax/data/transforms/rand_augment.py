"""RandAugment and color jitter with Pillow, from random numbers drawn in advance.

timm's `rand-m9-mstd0.5-inc1` (Cubuk et al., 1909.13719) uses Pillow's operations, and so does this;
TensorFlow has no bicubic shear or rotation and is slower at the rest.
"""

import itertools
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mae_jax.data.options import DataOptions

LAYERS = 2
RAND_DRAWS = 4 * LAYERS  # operation, whether it is applied, magnitude, direction
PROB = 0.5  # of each layer
MAX_LEVEL = 10.0
JITTER_DRAWS = 4  # order; brightness, contrast, saturation
NUM_DRAWS = JITTER_DRAWS + RAND_DRAWS

Pixels = Any  # a Pillow image


class Strength(NamedTuple):
    """Strength of an operation: level in [0, 1], sign (1 or -1); and the color of empty corners."""

    level: float
    sign: int = 1
    fill: tuple[int, ...] = (124, 116, 104)

    @property
    def signed(self) -> float:
        return self.sign * self.level


Operation = Callable[[Pixels, Strength], Pixels]


def _affine(image: Pixels, strength: Strength, matrix: tuple[float, ...]) -> Pixels:
    bicubic, affine = Image.Resampling.BICUBIC, Image.Transform.AFFINE
    return image.transform(image.size, affine, matrix, bicubic, fillcolor=strength.fill)


def _rotate(image: Pixels, strength: Strength) -> Pixels:
    return image.rotate(30 * strength.signed, Image.Resampling.BICUBIC, fillcolor=strength.fill)


def _posterize(image: Pixels, strength: Strength) -> Pixels:
    bits = 4 - int(4 * strength.level)
    # Pillow rejects 0 bits; the older version that timm used returned a black image.
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


def _solarize_add(image: Pixels, strength: Strength) -> Pixels:
    more = int(110 * strength.level)
    return image.point([min(255, i + more) if i < 128 else i for i in range(256)] * 3)


def _enhance(kind: Any) -> Operation:
    return lambda image, strength: kind(image).enhance(1 + 0.9 * strength.signed)


# Ranges: timm's auto_augment.py.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, strength: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength: ImageOps.equalize(image),
    "Invert": lambda image, strength: ImageOps.invert(image),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": lambda image, strength: ImageOps.solarize(
        image, 256 - int(256 * strength.level)
    ),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, strength: _affine(
        image, strength, (1, 0.3 * strength.signed, 0, 0, 1, 0)
    ),
    "ShearY": lambda image, strength: _affine(
        image, strength, (1, 0, 0, 0.3 * strength.signed, 1, 0)
    ),
    "TranslateXRel": lambda image, strength: _affine(
        image, strength, (1, 0, 0.45 * strength.signed * image.size[0], 0, 1, 0)
    ),
    "TranslateYRel": lambda image, strength: _affine(
        image, strength, (1, 0, 0, 0, 1, 0.45 * strength.signed * image.size[1])
    ),
}
_NAMES = tuple(OPERATIONS)


def choose(
    draws: Sequence[float] | np.ndarray,
    *,
    magnitude: float,
    std: float,
    fill: tuple[int, ...] = Strength(0).fill,
) -> list[tuple[str, Strength]]:
    """Name and strength of the operation of each layer that is applied.

    Args:
      draws: RAND_DRAWS numbers uniform in [0, 1).
      magnitude: mean of the magnitude, at most 10.
      std: its standard deviation.
      fill: color of corners that an operation leaves empty; timm uses the mean of the data set.
    """
    chosen = []
    for operation, applied, magnitude_draw, direction in np.reshape(draws, (LAYERS, 4)):
        if applied >= PROB:
            continue
        # Open at both ends, where the normal quantile is infinite.
        spread = NormalDist().inv_cdf(min(max(magnitude_draw, 2.0**-33), 1 - 2.0**-33))
        level = min(max(magnitude + std * spread, 0.0), MAX_LEVEL) / MAX_LEVEL
        strength = Strength(level, 1 if direction < 0.5 else -1, fill)
        chosen.append((_NAMES[int(operation * len(_NAMES))], strength))
    return chosen


def rand_augment(image: np.ndarray, draws: np.ndarray, **options: Any) -> np.ndarray:
    """Two layers of RandAugment on uint8 [H, W, 3]; see `choose` for the arguments."""
    chosen = choose(draws, **options)
    if not chosen:
        return image
    result = Image.fromarray(image)
    for name, strength in chosen:
        result = OPERATIONS[name](result, strength)
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
    """Function (image, draws) -> image that changes colors as configured; None if it would not.

    It uses the last NUM_DRAWS draws of a row.
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
