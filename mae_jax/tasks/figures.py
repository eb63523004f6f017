"""Figures as uint8 images: reconstructions, confusion matrices and curves."""

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from mae_jax.models.reconstruct import Reconstruction
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.text import printable
from mae_jax.train.evaluate import compile_eval_step

MIN_CELL = 96  # small images are enlarged to at least this many pixels
GAP = 4
TEXT = 18
MAX_CLASS_NAMES = 40  # class names are omitted if there are more


class HeldOutFigure:
    """Computes the content of a figure for a few fixed held-out images.

    Every process computes it for the same images, so nothing is split or gathered.

    Args:
      images: returns the batch; called once, on first use.
      step: function (variables, batch) -> arrays to show.
    """

    def __init__(
        self, images: Callable[[], dict[str, np.ndarray]], step: Callable[[Any, Any], Any]
    ):
        self._images, self._uncompiled = images, step
        self._step: Any = None

    def compute(self, variables: Any, mesh: Mesh) -> tuple[dict[str, np.ndarray], Any]:
        """The batch (`image` and `index`) and the step's result for it, as NumPy arrays."""
        if self._step is None:
            self._step = compile_eval_step(self._uncompiled, mesh)
            batch = self._images()
            self._batch = {key: batch[key] for key in ("image", "index")}
        return self._batch, jax.device_get(self._step(variables, self._batch))


def to_display(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] of images [N, H, W, C] in any units.

    Values in [0, 1] are shown as they are; otherwise each image is scaled by the range of its
    image in `reference`. One channel is shown in gray, two as red and green; of more than three,
    the first three are shown.
    """
    images, reference = images.astype(np.float32), reference.astype(np.float32)
    if reference.min() < 0 or reference.max() > 1:
        low = reference.min(axis=(1, 2), keepdims=True)
        span = np.maximum(reference.max(axis=(1, 2), keepdims=True) - low, 1e-6)
        images = (images - low) / span
    channels = images.shape[-1]
    if channels == 1:
        images = np.repeat(images, 3, axis=-1)
    elif channels == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], axis=-1)
    return np.round(np.clip(images[..., :3], 0, 1) * 255).astype(np.uint8)


def image_grid(columns: Sequence[tuple[str, np.ndarray]], caption: str = "") -> np.ndarray:
    """uint8 [H, W, 3] figure of titled columns of uint8 images [N, h, w, 3], one row per image.

    Columns are as wide as the widest title; the caption is wrapped to the width of the figure.
    """
    rows, height, width = columns[0][1].shape[:3]
    zoom = max(1, -(-MIN_CELL // min(height, width)))
    widest = max(_text_width(title) for title, _ in columns)
    cell_h, cell_w = height * zoom + GAP, max(width * zoom, widest) + GAP
    full_width = cell_w * len(columns) + GAP
    lines = _wrapped(caption, full_width - 2 * GAP)
    size = (full_width, TEXT + cell_h * rows + TEXT * len(lines))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for c, (title, images) in enumerate(columns):
        left = GAP + c * cell_w
        draw.text((left, 3), title, fill="black")
        for r, image in enumerate(images):
            cell = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1)
            canvas.paste(Image.fromarray(cell), (left, TEXT + r * cell_h))
    for i, line in enumerate(lines):
        draw.text((GAP, TEXT * (i + 1) + rows * cell_h), line, fill="black")
    return np.asarray(canvas)


def contact_sheet(images: np.ndarray, captions: Sequence[str], *, columns: int = 6) -> np.ndarray:
    """uint8 [H, W, 3] grid of images [N, h, w, C], each above its caption."""
    shown = to_display(to_unit(images), to_unit(images))
    rows = -(-len(shown) // columns)
    zoom = max(1, -(-MIN_CELL // min(shown.shape[1:3])))
    cell_h, cell_w = (size * zoom + GAP for size in shown.shape[1:3])
    cell_h += TEXT
    canvas = Image.new("RGB", (cell_w * columns + GAP, cell_h * rows + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(zip(shown, captions, strict=True)):
        left, top = GAP + i % columns * cell_w, GAP + i // columns * cell_h
        cell = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1)
        canvas.paste(Image.fromarray(cell), (left, top))
        draw.text(
            (left, top + cell_h - TEXT - GAP), fitting(draw, caption, cell_w - GAP), fill="black"
        )
    return np.asarray(canvas)


def to_unit(images: np.ndarray) -> np.ndarray:
    """8-bit images scaled to [0, 1]; others are returned unchanged."""
    return images / np.float32(255) if images.dtype == np.uint8 else images


def _text_width(text: str) -> int:
    return math.ceil(ImageFont.load_default().getlength(text))


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text that is broken between words to fit a width in pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of a text as fits into a width; what is cut off becomes an ellipsis."""
    text = printable(text)
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def save_png(path: str, image: np.ndarray, *, shared: bool = False) -> None:
    """Writes a uint8 [H, W, 3] image and creates its folder; `shared`: see `filesystem.replacing`.

    Raises:
      UsageError: the file extension is not an image format.
      OSError: it cannot be written.
    """
    kind = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise UsageError(f"{path} does not have the extension of an image: use .png")
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    filesystem.write(path, content.getvalue(), shared=shared)


def reconstruction_grid(
    views: Reconstruction | Mapping[str, Reconstruction],
    caption: str = "",
    *,
    mask_kind: str = "",
    raw: bool = False,
) -> np.ndarray:
    """uint8 [H, W, 3] figure of reconstructions, one row per image.

    The columns are original, masked, and reconstruction: predicted where patches are hidden, the
    original elsewhere. If the target is not the image, predictions are completed by the true target
    instead, which is the last column.

    Args:
      views: reconstructions with one mask; or with several masks, by the title of their column.
      caption: what the predictions are, such as `Target.caption`.
      mask_kind: named in the caption, next to the hidden share.
      raw: also show the decoder's output for all patches.
    """
    if isinstance(views, Reconstruction):
        caption = ". ".join(filter(None, (_describe_mask(views, mask_kind), caption)))
        views = {"masked": views}
    first = next(iter(views.values()))
    shown = [("original", to_display(np.asarray(first.original), np.asarray(first.original)))]
    for title, view in views.items():
        shown += _mask_columns(title, view, raw=raw)
    if first.target is not None:
        shown.append(("target", to_display(np.asarray(first.target), _reference(first))))
    return image_grid(shown, caption)


def _mask_columns(title: str, views: Reconstruction, *, raw: bool) -> list[tuple[str, np.ndarray]]:
    original, hidden, predicted = map(np.asarray, (views.original, views.hidden, views.predicted))
    truth = original if views.target is None else np.asarray(views.target)
    name = "reconstruction" if views.target is None else "predicted"
    columns = [(name, np.where(hidden, predicted, truth))]
    if raw:
        columns.append(("raw output", predicted))
    reference = _reference(views)
    return [
        (title, to_display(np.asarray(views.masked), original)),
        *((name, to_display(images, reference)) for name, images in columns),
    ]


def _reference(views: Reconstruction) -> np.ndarray:
    """Sets the range in which targets and predictions are shown; see `to_display`."""
    original = np.asarray(views.original)
    if views.target is None or (original.min() >= 0 and original.max() <= 1):
        return original
    return np.asarray(views.target)  # may have other units than the image


def _describe_mask(views: Reconstruction, kind: str) -> str:
    share = f"{100 * np.asarray(views.hidden).mean():.3g} % of the patches are hidden"
    return f"{share} ({kind})" if kind else share


def _escape(names: Iterable[str]) -> list[str]:
    """Makes matplotlib draw names literally; it would interpret `$` as math."""
    return [printable(name).replace("$", r"\$") for name in names]


def _render(figure: Figure) -> np.ndarray:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """uint8 [H, W, 3] figure of int counts [C, C], with true classes as rows that sum to 1."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(5.0, min(0.35 * len(classes), 14.0)) + 1
    figure = Figure((size + 1, size), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(counts / total, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, label="share of the row's class")
    right = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel="answer", ylabel="class", title=f"top-1 {right:.2%} of {counts.sum():,}")
    if len(classes) <= MAX_CLASS_NAMES:
        ticks = range(len(classes))
        names = _escape(classes)
        axes.set_xticks(ticks, names, rotation=90)
        axes.set_yticks(ticks, names)
        for (row, column), count in np.ndenumerate(counts):
            if count and len(classes) <= 12:
                share = count / total[row, 0]
                color = "white" if share > 0.5 else "black"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return _render(figure)


def curves(
    title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str
) -> np.ndarray:
    """uint8 [H, W, 3] line plot of (x, y) by name."""
    figure = Figure((8, 5), layout="constrained", dpi=110)
    axes = figure.subplots()
    for name, (x, y) in zip(_escape(lines), lines.values(), strict=True):
        axes.plot(x, y, marker="o" if len(x) < 30 else "", markersize=4, label=name)
    axes.set(title=title, xlabel=xlabel)
    axes.grid(alpha=0.3)
    axes.legend()
    return _render(figure)


def panels(
    title: str,
    names: Sequence[str],
    shown: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> np.ndarray:
    """uint8 [H, W, 3] figure of several panels of curves over the same rows of a study.

    Args:
      title: of the figure.
      names: of the rows. If all are numbers they are the x values, otherwise categories.
      shown: panel -> curve -> a value or None for each row.
    """
    try:
        places, numeric = [float(name) for name in names], True
    except ValueError:
        places, numeric = [float(i) for i in range(len(names))], False
    figure = Figure((4.2 * max(len(shown), 1), 3.8), layout="constrained", dpi=110)
    figure.suptitle(title)
    all_axes = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for axes, (panel, curves_) in zip(all_axes, shown.items(), strict=False):
        for name, values in curves_.items():
            points = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.plot(x, y, "o-" if numeric else "o", markersize=5, label=name)
        axes.set(title=panel)
        if not numeric:
            axes.set_xticks(places, names, rotation=20, ha="right")
            axes.margins(x=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return _render(figure)
