"""Figures of detections: images with boxes, masks, class names, and scores."""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_jax.data import segments
from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Annotation, Source
from mae_jax.data.transforms.decode import pixels
from mae_jax.data.transforms.scale_jitter import visible_objects, whole_view
from mae_jax.runtime.text import printable
from mae_jax.tasks.detection_eval import ImageDetections
from mae_jax.tasks.figures import fitting, to_display, to_unit

MIN_SCORE = 0.5  # of the detections that are drawn
MASK_OPACITY = 0.45
MIN_SIDE = 320  # smaller images are enlarged to about this
MAX_SIDE = 640  # larger images are reduced to this
LABEL_HEIGHT = 13
GAP, TITLE = 4, 18
PAIRS_PER_ROW = 2  # ground truth and prediction
_GOLDEN = 0.618033988749895  # steps of the hue, so that neighboring classes differ


class Drawing(NamedTuple):
    """What to draw on one image.

    Attributes:
      boxes: [n, 4] in pixels of the image.
      classes: int [n].
      masks: bool [n, H, W], or None.
      scores: [n], or None for ground truth.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray | None = None


def class_color(number: int) -> tuple[int, int, int]:
    """The color of a class, the same in every figure."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image: np.ndarray, drawing: Drawing, names: Sequence[str]) -> np.ndarray:
    """uint8 [h, w, 3]: the image, enlarged or reduced, with its objects.

    Large objects are drawn first, so that small ones stay visible.

    Args:
      image: [H, W, C].
      drawing: the objects.
      names: of the classes.
    """
    order = np.argsort(-_areas(drawing.boxes), kind="stable")
    unit = to_unit(image[None])
    canvas = to_display(unit, unit)[0].astype(np.float32)
    for i in order if drawing.masks is not None else ():
        assert drawing.masks is not None
        color = np.array(class_color(int(drawing.classes[i])), np.float32)
        inside = drawing.masks[i]
        canvas[inside] = (1 - MASK_OPACITY) * canvas[inside] + MASK_OPACITY * color
    zoom = _zoom(image.shape[:2])
    size = round(image.shape[1] * zoom), round(image.shape[0] * zoom)
    drawn = Image.fromarray(canvas.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(drawn)
    for i in order:
        score = None if drawing.scores is None else float(drawing.scores[i])
        _draw_box(pen, drawing.boxes[i] * zoom, names, int(drawing.classes[i]), score, size)
    return np.asarray(drawn)


def sheet(
    cells: Sequence[tuple[str, np.ndarray]], *, columns: int, caption: str = ""
) -> np.ndarray:
    """uint8 figure of titled images uint8 [h, w, 3] of any sizes, row by row."""
    cell_w = max((image.shape[1] for _, image in cells), default=0) + GAP
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [TITLE + max(image.shape[0] for _, image in row) + GAP for row in rows]
    width = cell_w * min(columns, len(cells)) + GAP
    canvas = Image.new("RGB", (width, sum(heights) + (TITLE if caption else GAP)), "white")
    pen = ImageDraw.Draw(canvas)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, (title, image) in enumerate(row):
            left = GAP + column * cell_w
            pen.text((left, top + 3), fitting(pen, title, cell_w - GAP), fill="black")
            canvas.paste(Image.fromarray(image), (left, top + TITLE))
        top += height
    if caption:
        pen.text((GAP, top), caption, fill="black")
    return np.asarray(canvas)


def comparison(
    source: Source,
    found: Sequence[ImageDetections],
    names: Sequence[str],
    data_config: Any,
    *,
    min_score: float,
) -> np.ndarray:
    """uint8 figure of images with their true objects and with the detected ones.

    Args:
      source: of the images.
      found: detections in the images to show.
      names: of the classes.
      data_config: `config.data`.
      min_score: of the detections to draw.
    """
    cells = []
    for detected in found:
        image, annotation = read_image(source, detected.index, data_config)
        cells += _pair(image, detected, annotation, names, min_score)
    caption = f"detections with a score of at least {min_score:.0%}"
    return sheet(cells, columns=2 * PAIRS_PER_ROW, caption=caption)


def read_image(source: Source, index: int, data_config: Any) -> tuple[np.ndarray, Annotation]:
    """Pixels [h, w, C] and annotation of an example of a source."""
    (record,) = source.read([index])
    options = DataOptions.from_config(data_config)
    channels = len(data_config["mean"])
    return pixels(record.data, options, channels=channels), record.annotation


def _pair(
    image: np.ndarray,
    detected: ImageDetections,
    annotation: Annotation,
    names: Sequence[str],
    min_score: float,
) -> list[tuple[str, np.ndarray]]:
    """Titled drawings of the true and of the detected objects."""
    view = whole_view(*image.shape[:2], target=image.shape[:2])
    objects, _ = visible_objects(annotation, view, limit=len(annotation["boxes"]))
    true = Drawing(objects.boxes, objects.classes, np.array(objects.masks, bool))
    return [
        ("ground truth", draw(image, true, names)),
        ("prediction", draw(image, predicted(detected, min_score), names)),
    ]


def predicted(found: ImageDetections, min_score: float) -> Drawing:
    """The detections with at least this score."""
    kept = np.flatnonzero(found.scores >= min_score)
    masks = np.array([segments.decode(found.masks[i]) for i in kept], bool)
    return Drawing(found.boxes[kept], found.classes[kept], masks, found.scores[kept])


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _zoom(shape: tuple[int, ...]) -> float:
    longest = max(shape)
    if longest > MAX_SIDE:
        return MAX_SIDE / longest
    return max(1.0, MIN_SIDE / longest)


def _draw_box(
    pen: ImageDraw.ImageDraw,
    box: np.ndarray,
    names: Sequence[str],
    number: int,
    score: float | None,
    size: tuple[int, int],
) -> None:
    color = class_color(number)
    x0, y0, x1, y1 = (float(x) for x in box)
    pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
    text = printable(names[number]) + ("" if score is None else f" {score:.0%}")
    width = ImageFont.load_default().getlength(text) + 4
    left = max(0.0, min(x0, size[0] - width))
    top = y0 - LABEL_HEIGHT if y0 >= LABEL_HEIGHT else y0
    pen.rectangle((left, top, left + width, top + LABEL_HEIGHT), fill=color)
    pen.text((left + 2, top), text, fill="black")
