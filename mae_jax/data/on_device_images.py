"""A whole set of images as one array, and which views of it a batch is made of.

NumPy and Pillow only: a machine without TensorFlow can train from such a set.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data.loader import FAILED, PADDING, BadExamples, Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import EvalSampler, Plan, TrainSampler
from mae_jax.data.sources.base import Source, label_of
from mae_jax.data.transforms import crop
from mae_jax.runtime.errors import UsageError

_CHUNK = 64  # images per thread between two looks at what they add up to

Order = TrainSampler | EvalSampler


class Examples(NamedTuple):
    """All about a set but its pixels.

    Attributes:
      sizes: int32 [N, 2], height and width; 1 x 1 where an image cannot be read.
      labels: int32 [N], -1 for none.
      readable: bool [N].
      bad: those that are not, and why.
    """

    sizes: np.ndarray
    labels: np.ndarray
    readable: np.ndarray
    bad: BadExamples


def read_whole(
    source: Source,
    options: DataOptions,
    *,
    channels: int,
    check_shape: Callable[[tuple[int, int, int, int]], None] = lambda shape: None,
) -> tuple[np.ndarray, Examples]:
    """Decodes every image of a source, `data.workers` at a time.

    Args:
      source: the images.
      options: `config.data`.
      channels: C of the model.
      check_shape: called with the shape of the result as far as it is known, again and again; may
        raise, to end what would not fit.

    Returns:
      The pixels [N, H, W, C] in the type of `data.dtype`, where H and W are those of the largest
      image and the smaller ones lie at the top left; and everything else about them.

    Raises:
      UsageError: more images than `data.max_bad_fraction` cannot be read.
      StorageUnavailable: the storage is away.
    """
    loader = Loader(source, options, channels=channels)
    total, chunk = len(source), _CHUNK * options.num_workers
    arrays: list[Any] = []
    labels = np.full(total, -1, np.int32)
    readable = np.zeros(total, bool)
    height = width = 1
    with concurrent.futures.ThreadPoolExecutor(options.num_workers) as pool:
        for start in range(0, total, chunk):
            numbers = range(start, min(start + chunk, total))
            for i, (_, array, annotation) in zip(
                numbers, pool.map(lambda i: loader.load(np.array([i])), numbers), strict=True
            ):
                readable[i] = array is not None
                array = np.zeros((1, 1, channels), options.dtype) if array is None else array
                arrays.append(array)
                labels[i] = label_of(annotation)
                height, width = max(height, array.shape[0]), max(width, array.shape[1])
            if loader.storage.gone:
                raise loader.storage.gone
            loader.bad.check()
            check_shape((total, height, width, channels))
    sizes = np.array([array.shape[:2] for array in arrays], np.int32)
    images = np.zeros((total, height, width, channels), options.dtype)
    for i, (h, w) in enumerate(sizes):
        images[i, :h, :w], arrays[i] = arrays[i], None  # what is copied need not be kept
    return images, Examples(sizes, labels, readable, loader.bad)


def plan_rows(
    plan: Plan,
    examples: Examples,
    options: DataOptions,
    *,
    image_size: tuple[int, int],
    train: bool,
) -> dict[str, np.ndarray]:
    """What makes the images of a batch, and what goes with them.

    Args:
      plan: the order's; of the draws the first `geometry.NUM_DRAWS` are used.
      examples: of the set.
      options: `config.data`.
      image_size: (H, W) of the model.
      train: False takes evaluation's view, and marks the rows that do not count.

    Returns:
      `used` int32 [b], example to show, below 0 for black; `start`, `size`, `full`, `offset` int32
      [b, 2] (see `geometry.View`) and `mirror` bool [b]; `label`, `index` and, in evaluation,
      `valid`, as `pipeline` has them.

    Raises:
      UsageError: a training image and all its replacements cannot be read.
    """
    used = _first_readable(plan.candidates, examples.readable)
    if train and (used == FAILED).any():
        reason = examples.bad.reason(int(plan.wanted[np.argmax(used == FAILED)]))
        raise UsageError(f"an image and all its replacements cannot be read: {reason}")
    shown = np.maximum(used, 0)
    sizes = examples.sizes[shown]
    views = [
        crop.choose_view(h, w, draws, options=options, target=image_size, train=train)
        for (h, w), draws in zip(sizes.tolist(), plan.draws.tolist(), strict=True)
    ]
    *places, mirror = zip(*views, strict=True)
    rows = {
        "used": used.astype(np.int32),
        "mirror": np.array(mirror),
        "label": np.where(used >= 0, examples.labels[shown], -1).astype(np.int32),
        "index": plan.wanted,
        **{k: np.array(x, np.int32) for k, x in zip(crop.View._fields, places, strict=False)},
    }
    return rows if train else rows | {"valid": used >= 0}


def _first_readable(candidates: np.ndarray, readable: np.ndarray) -> np.ndarray:
    """The first of each row's candidates [b, k] that can be read; PADDING and FAILED stay out."""
    good = (candidates >= 0) & readable[candidates]
    first = np.take_along_axis(candidates, good.argmax(axis=1)[:, None], axis=1)[:, 0]
    used = np.where(good.any(axis=1), first, FAILED)
    return np.where(candidates[:, 0] == PADDING, PADDING, used)
