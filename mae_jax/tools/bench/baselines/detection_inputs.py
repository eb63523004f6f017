"""Random inputs of the detection operators, the same for our operators and torchvision's."""

from typing import NamedTuple

import numpy as np

BOXES = 512  # regions of interest of one image (Mask R-CNN in training)
LEVELS, PROPOSALS = 5, 2000  # candidates for suppression: levels of a pyramid, boxes per level
STRIDES = (4, 8, 16, 32)


class Inputs(NamedTuple):
    """Inputs for one image.

    Attributes:
      pyramid: float32 [H, W, C] of each level, p2 to p5.
      boxes: float32 [BOXES, 4], with sides from 8 pixels to half of the image.
      levels: int [BOXES], the level of each box.
      candidates: float32 [LEVELS, PROPOSALS, 4], in clusters as proposals are.
      scores: float32 [LEVELS, PROPOSALS].
    """

    pyramid: list[np.ndarray]
    boxes: np.ndarray
    levels: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray


def make_inputs(image_size: int, channels: int) -> Inputs:
    """Inputs for a square image, the same at every call."""
    rng = np.random.default_rng(0)
    pyramid = [
        rng.standard_normal((image_size // s, image_size // s, channels), np.float32)
        for s in STRIDES
    ]
    boxes = _boxes(rng, BOXES, image_size)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    levels = 2 + (area[:, None] >= np.square([112, 224, 448])).sum(axis=1)
    centers = _boxes(rng, LEVELS * PROPOSALS // 20, image_size)
    objects = centers[rng.integers(0, len(centers), (LEVELS, PROPOSALS))]
    side = np.tile(objects[..., 2:] - objects[..., :2], 2)
    candidates = objects + 0.15 * side * rng.standard_normal(objects.shape)
    scores = rng.random((LEVELS, PROPOSALS), np.float32)
    return Inputs(pyramid, boxes, levels, _clipped(candidates, image_size), scores)


def _boxes(rng: np.random.Generator, number: int, image_size: int) -> np.ndarray:
    center = rng.random((number, 2)) * image_size
    size = np.exp(rng.uniform(np.log(8), np.log(image_size / 2), (number, 1)))
    half = size * np.exp(rng.normal(0, 0.3, (number, 2))) / 2
    return _clipped(np.concatenate([center - half, center + half], axis=1), image_size)


def _clipped(boxes: np.ndarray, image_size: int) -> np.ndarray:
    return boxes.clip(0, image_size).astype(np.float32)
