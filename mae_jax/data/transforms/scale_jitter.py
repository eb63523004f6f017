"""Images with their objects, for detection: large-scale jitter in training, the whole image else.

Large-scale jitter (Ghiasi et al., arXiv 2012.07177) flips, resizes by a random factor and crops.
The view is placed in the upper left corner of a fixed canvas; the rest is zero, and the model
blanks it again after it has normalized the pixels. Numbers agree with detectron2's `ResizeScale`,
`FixedSizeCrop` and `ResizeShortestEdge`.

Boxes are those of the visible part of each object: of its clipped polygons, or of the pixels of its
mask. There is no minimum size, but an object without any extent is dropped.
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data import segments
from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Annotation
from mae_jax.data.transforms.base import Field
from mae_jax.data.transforms.crop import Pair
from mae_jax.data.transforms.resize import mirrored, resize

log = logging.getLogger(__name__)
FLIP, SCALE, PLACE = range(3)  # the draws
MIN_SIDE = 1e-5  # pixels of a box


class View(NamedTuple):
    """Which part of an image is shown, and how large.

    The image is flipped if `mirror`, then resized to `full` pixels; the view are the `size` pixels
    that begin at `offset`. All pairs are (rows, columns).
    """

    mirror: bool
    full: Pair
    offset: Pair
    size: Pair


class Objects(NamedTuple):
    """The n visible objects of a view.

    Attributes:
      boxes: float32 [n, 4], (x0, y0, x1, y1) in pixels of the view.
      classes: int32 [n].
      masks: for each object, bool [rows, columns] of the view.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: list[np.ndarray]


def jittered_view(
    height: int, width: int, *, scale: float, place: float, target: Pair, mirror: bool
) -> View:
    """The view of large-scale jitter.

    Args:
      height, width: of the image.
      scale: size of the resized image, relative to the largest one that fits into `target`.
      place: in [0, 1): where it is cropped; the same number for both axes.
      target: (H, W) of the canvas.
      mirror: whether to flip.
    """
    ratio = min(target[0] * scale / height, target[1] * scale / width)
    full = max(round(height * ratio), 1), max(round(width * ratio), 1)
    offset = (
        round(max(full[0] - target[0], 0) * place),
        round(max(full[1] - target[1], 0) * place),
    )
    return View(mirror, full, offset, (min(full[0], target[0]), min(full[1], target[1])))


def whole_view(height: int, width: int, *, target: Pair) -> View:
    """The view of evaluation: the largest size that fits into `target`."""
    ratio = min(target[0] / height, target[1] / width)
    full = max(int(height * ratio + 0.5), 1), max(int(width * ratio + 0.5), 1)
    return View(False, full, (0, 0), full)


def visible_objects(annotation: Annotation, view: View, *, limit: int) -> tuple[Objects, int]:
    """The objects that a view shows, without crowds, in the order of the annotation.

    Args:
      annotation: of a detection record (`sources.coco`).
      view: of its image.
      limit: how many objects to return at most: those with the largest boxes.

    Returns:
      The objects, and how many there are without the limit.
    """
    found = []
    for row, segment in enumerate(annotation["segments"]):
        if annotation["crowd"][row]:
            continue
        if isinstance(segment, Mapping):
            shape = _mask_in_view(segment, view)
            box = segments.mask_box(shape)
        else:
            shape = _polygons_in_view(segment, annotation["size"], view)
            box = segments.polygon_box(shape) if shape else (0.0, 0.0, 0.0, 0.0)
        if min(box[2] - box[0], box[3] - box[1]) > MIN_SIDE:
            found.append((box, annotation["classes"][row], shape))
    boxes = np.array([box for box, _, _ in found], np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.sort(np.argsort(-areas, kind="stable")[:limit])
    masks = [
        shape if isinstance(shape, np.ndarray) else segments.rasterize(shape, *view.size)
        for shape in (found[i][2] for i in kept)
    ]
    classes = np.array([found[i][1] for i in kept], np.int32)
    return Objects(boxes[kept], classes, masks), len(found)


def _polygons_in_view(polygons: segments.Polygons, size: Pair, view: View) -> list[np.ndarray]:
    """The parts of polygons that a view of an image of `size` shows, in its coordinates."""
    ratio = np.array([view.full[1] / size[1], view.full[0] / size[0]])
    clipped = []
    for points in polygons:
        if view.mirror:
            points = np.stack([size[1] - points[:, 0], points[:, 1]], axis=1)
        points = points * ratio - (view.offset[1], view.offset[0])
        clipped.append(segments.clip_polygon(points, *view.size))
    return [points for points in clipped if len(points) and np.ptp(points, axis=0).min() > 0]


def _mask_in_view(rle: segments.Rle, view: View) -> np.ndarray:
    """The pixels of a mask that a view shows: the nearest ones, as in Pillow."""
    mask = segments.decode(rle)
    if view.mirror:
        mask = mask[:, ::-1]
    rows, columns = (
        _nearest(mask.shape[axis], view.full[axis])[view.offset[axis] :][: view.size[axis]]
        for axis in (0, 1)
    )
    return mask[rows][:, columns]


def _nearest(before: int, after: int) -> np.ndarray:
    """Indices of the `before` pixels that `after` pixels show; sums up steps as Pillow does."""
    step = before / after
    steps = np.full(after, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), before - 1)


def _canvas(
    image: np.ndarray, view: View, target: Pair, options: DataOptions, *, train: bool
) -> np.ndarray:
    """The view on a black canvas [H, W, C]."""
    if view.mirror:
        image = mirrored(image)
    image = resize(
        image,
        view.full,
        antialias=options.resize_antialias,
        exact=options.exact_resize(train=train),
        kernel="bilinear",
    )
    (top, left), (height, width) = view.offset, view.size
    canvas = np.zeros((*target, image.shape[2]), image.dtype)
    canvas[:height, :width] = image[top : top + height, left : left + width]
    return canvas


class ScaleJitter:
    """Large-scale jitter of an image and its objects (a `Transform`).

    Its fields are `image` [H, W, C] in the type of `data.dtype`; `size` int32 [2], the height and
    width of the view inside it; and `original_size` int32 [2], those of the image. In training,
    with G = `data.max_objects`, also `boxes` float32 [G, 4], (x0, y0, x1, y1) in pixels of the
    view; `classes` int32 [G]; `object_valid` bool [G], False for unused places; and `masks` uint8
    [G, H, W / 8], packed as in `numpy.packbits`. Unused places are zero.

    Args:
      data_config: `config.data`, of which it uses `scale_jitter`, `hflip` and `max_objects`.
      image_size: (H, W).
      channels: C.
      train: False shows the whole image, as large as possible, and no objects.
    """

    def __init__(
        self, data_config: Any, *, image_size: tuple[int, int], train: bool, channels: int = 3
    ):
        self._options = options = DataOptions.from_config(data_config)
        self._target = height, width = image_size[0], image_size[1]
        self._train = train
        self._reported = threading.Event()
        self.num_draws = 3 if train else 0
        self.fields = {
            "image": Field((height, width, channels), options.dtype),
            "size": Field((2,), "int32", fill=1),
            "original_size": Field((2,), "int32", fill=1),
        }
        if train:
            count = options.max_objects
            self.fields |= {
                "boxes": Field((count, 4), "float32"),
                "classes": Field((count,), "int32"),
                "object_valid": Field((count,), "bool"),
                "masks": Field((count, height, -(-width // 8)), "uint8"),
            }

    def __call__(
        self, image: np.ndarray, annotation: Annotation, draws: np.ndarray
    ) -> dict[str, Any]:
        height, width = image.shape[:2]
        if not self._train:
            view = whole_view(height, width, target=self._target)
        else:
            low, high = self._options.scale_jitter
            view = jittered_view(
                height,
                width,
                scale=low + (high - low) * float(draws[SCALE]),
                place=float(draws[PLACE]),
                target=self._target,
                mirror=self._options.hflip and bool(draws[FLIP] < 0.5),
            )
        values = {
            "image": _canvas(image, view, self._target, self._options, train=self._train),
            "size": np.array(view.size, np.int32),
            "original_size": np.array(image.shape[:2], np.int32),
        }
        return values | self._objects(annotation, view) if self._train else values

    def _objects(self, annotation: Annotation, view: View) -> dict[str, np.ndarray]:
        """The fields of the objects in a view."""
        limit = self._options.max_objects
        objects, total = visible_objects(annotation, view, limit=limit)
        if total > limit and not self._reported.is_set():
            self._reported.set()
            log.warning(
                "an image has %d objects, more than --config.data.max_objects=%d: its largest are "
                "kept; further such images are not reported",
                *(total, limit),
            )
        count, packed = len(objects.boxes), self.fields["masks"]
        masks = np.zeros(packed.shape, packed.dtype)
        for row, mask in enumerate(objects.masks):
            bits = np.packbits(mask, axis=1)
            masks[row, : bits.shape[0], : bits.shape[1]] = bits
        return {
            "boxes": np.pad(objects.boxes, ((0, limit - count), (0, 0))),
            "classes": np.pad(objects.classes, (0, limit - count)),
            "object_valid": np.arange(limit) < count,
            "masks": masks,
        }
