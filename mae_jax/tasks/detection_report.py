"""Evaluates a trained detector and writes its detections, scores and mistakes to files."""

import os

import numpy as np

from mae_jax import convert
from mae_jax.data import Source
from mae_jax.data.sources.coco import annotated_images
from mae_jax.runtime import disk, text
from mae_jax.runtime.errors import require
from mae_jax.tasks import coco_eval, detection_figures, figures
from mae_jax.tasks.detection_eval import BATCH_SIZE, ImageDetections, detect
from mae_jax.tasks.held_out import held_out

NUM_WORST = 12  # images in worst.png


def evaluate(
    path: str,
    *,
    out: str,
    images: str = "",
    annotations: str = "",
    root: str = "",
    batch_size: int = BATCH_SIZE,
) -> tuple[coco_eval.Scores, list[str]]:
    """Evaluates a detector; returns its scores and the paths of the files written.

    Args:
      path: of the checkpoint.
      out: folder to write into.
      images, annotations: a folder and the objects in it; "" for the run's held-out images.
      root: where the run's data are now; "" if they have not moved.
      batch_size: global batch size; rounded up to a multiple of the number of devices.

    Raises:
      UsageError: the images are not annotated, or have other classes.
    """
    model = convert.load(path)
    model.report.check()
    source = _source(model, path, images, annotations, root)
    found = detect(model, source, batch_size=batch_size)
    results = coco_eval.coco_results(source, found)
    scores = coco_eval.evaluate(source, [image.index for image in found], results)
    with disk.translate_errors(out):
        files = scores.write(out, results, source.describe)
        files.append(os.path.join(out, "worst.png"))
        figures.save_png(files[-1], _worst(model, source, found, scores))
    return scores, files


def _source(model: convert.Weights, path: str, images: str, annotations: str, root: str) -> Source:
    classes = model.metadata["classes"]
    if images:
        require(
            bool(annotations), "--images of a detector needs --annotations, the objects in them"
        )
        return annotated_images(images, annotations, classes=classes)
    source = held_out(model, path, root)
    require(
        text.same_names(source.classes, classes),
        "the classes of the held-out images differ from those the checkpoint was trained on",
    )
    return source


def _worst(
    model: convert.Weights,
    source: Source,
    found: list[ImageDetections],
    scores: coco_eval.Scores,
) -> np.ndarray:
    """Figure of the images with the lowest scores."""
    by_index = {image.index: image for image in found}
    return detection_figures.comparison(
        source,
        [by_index[image.index] for image in scores.images[:NUM_WORST]],
        model.metadata["classes"],
        model.metadata["config"]["data"],
        min_score=detection_figures.MIN_SCORE,
    )
