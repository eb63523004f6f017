"""The images of a source as one array, and the rows of a batch that are made from it.

Needs NumPy and Pillow only: a machine without TensorFlow can train from such a set.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data.loader import FAILED, PADDING, BadExamples, Loader
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import Plan
from mae_jax.data.sources.base import Source, label_of
from mae_jax.data.transforms import crop
from mae_jax.runtime.errors import UsageError

_CHUNK = 64  # images per thread between two checks of their total size
_NO_DRAWS = np.zeros(crop.NUM_DRAWS)


class Examples(NamedTuple):
    """Everything about the N examples of a source except their pixels.

    Attributes:
      places: int32 [N], where in the array of images each one is.
      sizes: int32 [N, 2], height and width in the array; 1 x 1 if not read or unreadable.
      labels: int32 [N], -1 for none.
      readable: bool [N]; False also for examples that were not read.
      bad: the unreadable ones, and why.
      are_views: the images are cropped already.
    """

    places: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    readable: np.ndarray
    bad: BadExamples
    are_views: bool


def read_images(
    source: Source,
    options: DataOptions,
    *,
    channels: int,
    indices: np.ndarray | None = None,
    view: crop.ImageTransform | None = None,
    min_size: tuple[int, int] = (1, 1),
    check_shape: Callable[[tuple[int, int, int, int]], None] = lambda shape: None,
) -> tuple[np.ndarray, Examples]:
    """Decodes images of a source, `data.workers` at a time.

    Args:
      source: the images.
      options: `config.data`.
      channels: C of the model.
      indices: int64 [n], the examples to read; None reads all of them.
      view: what to keep of each image; None keeps all of it.
      min_size: height and width of the result, at least; that of the views.
      check_shape: called repeatedly with the shape of the result as far as it is known; may raise
        to stop early.

    Returns:
      The pixels [n, H, W, C] in the type of `data.dtype`, where H and W are those of the largest
      image and smaller ones lie at the top left; and everything else about them.

    Raises:
      UsageError: more images than `data.max_bad_fraction` cannot be read.
      StorageUnavailable: the storage is away.
    """
    total = len(source)
    indices = np.arange(total) if indices is None else indices
    loader = Loader(source, options, channels=channels, share=len(indices))
    examples = Examples(
        places=np.zeros(total, np.int32),
        sizes=np.ones((total, 2), np.int32),
        labels=np.full(total, -1, np.int32),
        readable=np.zeros(total, bool),
        bad=loader.bad,
        are_views=view is not None,
    )
    examples.places[indices] = np.arange(len(indices))

    def load(index: int) -> np.ndarray:
        _, image, annotation = loader.load(np.array([index]))
        examples.readable[index] = image is not None
        examples.labels[index] = label_of(annotation)
        if image is None:
            return np.zeros((1, 1, channels), options.dtype)
        image = image if view is None else view(image, _NO_DRAWS)
        examples.sizes[index] = image.shape[:2]
        return image

    arrays: list[Any] = []
    height, width = min_size
    chunk = _CHUNK * options.num_workers
    with concurrent.futures.ThreadPoolExecutor(options.num_workers) as pool:
        for start in range(0, len(indices), chunk):
            some = indices[start : start + chunk]
            arrays += pool.map(load, some.tolist())
            height, width = np.maximum((height, width), examples.sizes[some].max(axis=0)).tolist()
            if loader.storage.gone:
                raise loader.storage.gone
            loader.bad.check()
            check_shape((len(indices), height, width, channels))
    images = np.zeros((len(indices), height, width, channels), options.dtype)
    for i, array in enumerate(arrays):
        images[i, : array.shape[0], : array.shape[1]] = array
        arrays[i] = None  # frees the copied array
    return images, examples


def plan_rows(
    plan: Plan,
    examples: Examples,
    options: DataOptions,
    *,
    image_size: tuple[int, int],
    train: bool,
) -> dict[str, np.ndarray]:
    """How to make the images of a batch, and the other fields of its rows.

    Args:
      plan: of the sampler; the first `crop.NUM_DRAWS` draws are used.
      examples: of the set.
      options: `config.data`.
      image_size: (H, W) of the model.
      train: False marks the rows that do not count.

    Returns:
      `place` int32 [b], position of the image in the array, below 0 for black; unless the images
      are views, `start`, `size`, `full`, `offset` int32 [b, 2] and `mirror` bool [b] (see
      `crop.View`); `label`, `index` and, in evaluation, `valid`, as in `pipeline`.

    Raises:
      UsageError: a training image and all its replacements cannot be read.
    """
    used = _first_readable(plan.candidates, examples.readable)
    if train and (used == FAILED).any():
        reason = examples.bad.reason(int(plan.wanted[np.argmax(used == FAILED)]))
        raise UsageError(f"an image and all its replacements cannot be read: {reason}")
    shown = np.maximum(used, 0)
    rows = {
        "place": np.where(used >= 0, examples.places[shown], -1).astype(np.int32),
        "label": np.where(used >= 0, examples.labels[shown], -1).astype(np.int32),
        "index": plan.wanted,
    }
    if not examples.are_views:
        rows |= _crops(examples.sizes[shown], plan.draws, options, image_size=image_size)
    return rows if train else rows | {"valid": used >= 0}


def _crops(
    sizes: np.ndarray, draws: np.ndarray, options: DataOptions, *, image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Random views of images of the given sizes [b, 2], one of each."""
    views = [
        crop.choose_view(h, w, numbers, options=options, target=image_size, train=True)
        for (h, w), numbers in zip(sizes.tolist(), draws.tolist(), strict=True)
    ]
    *places, mirror = zip(*views, strict=True)
    pairs = {k: np.array(x, np.int32) for k, x in zip(crop.View._fields, places, strict=False)}
    return pairs | {"mirror": np.array(mirror)}


def _first_readable(candidates: np.ndarray, readable: np.ndarray) -> np.ndarray:
    """The first readable candidate [b, k] of each row; PADDING and FAILED stay."""
    good = (candidates >= 0) & readable[candidates]
    first = np.take_along_axis(candidates, good.argmax(axis=1)[:, None], axis=1)[:, 0]
    used = np.where(good.any(axis=1), first, FAILED)
    return np.where(candidates[:, 0] == PADDING, PADDING, used)
