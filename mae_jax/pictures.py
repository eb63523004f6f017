"""Pictures of reconstructions: titled columns, one row per image."""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mae_jax import files
from mae_jax.errors import UsageError
from mae_jax.reconstruct import Reconstruction

MIN_CELL = 96  # small images are enlarged to at least this many pixels
GAP = 4
TEXT = 18


def to_display(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] of images [N, H, W, C] in any units.

    Images in [0, 1] are shown as they are; others are scaled, each by the range of the image in
    `reference`. One channel is shown grey, two or more as red, green (and blue).
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


def grid(columns: Sequence[tuple[str, np.ndarray]], caption: str = "") -> np.ndarray:
    """uint8 [H, W, 3] picture of titled columns of uint8 images [N, h, w, 3], one row per image."""
    rows, height, width = columns[0][1].shape[:3]
    zoom = max(1, -(-MIN_CELL // min(height, width)))
    cell_h, cell_w = height * zoom + GAP, width * zoom + GAP
    foot = TEXT if caption else 0
    size = (cell_w * len(columns) + GAP, TEXT + cell_h * rows + foot)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for c, (title, images) in enumerate(columns):
        left = GAP + c * cell_w
        draw.text((left, 3), title, fill="black")
        for r, image in enumerate(images):
            cell = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1)
            canvas.paste(Image.fromarray(cell), (left, TEXT + r * cell_h))
    if caption:
        draw.text((GAP, TEXT + rows * cell_h), caption, fill="black")
    return np.asarray(canvas)


def save(path: str, image: np.ndarray) -> None:
    """Writes a uint8 [H, W, 3] picture; the folder is made when missing.

    Raises:
      UsageError: the ending of the name says no kind of picture.
      OSError: it cannot be written.
    """
    kind = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise UsageError(f"{path} is no name of a picture: let it end with .png")
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    files.write(path, content.getvalue())


def reconstruction_grid(views: Reconstruction, caption: str = "") -> np.ndarray:
    """uint8 [H, W, 3]: original, masked, reconstruction, the same with visible patches pasted."""
    titles = ("original", "masked", "reconstruction", "with visible")
    columns = [
        (title, to_display(np.asarray(view), np.asarray(views.original)))
        for title, view in zip(titles, views, strict=True)
    ]
    return grid(columns, caption)
