"""Runs a trained model on images and writes what it says about each.

Examples:
  python -m mae_jax.tools.predict --checkpoint runs/finetune/folder \\
      --images photos --out predictions
  python -m mae_jax.tools.predict --checkpoint runs/folder --images photos \\
      --out predictions

The checkpoint is a run, one of its steps, or weights (docs/weights.md). What is
written into --out depends on the model:

  classifier   predictions.csv  the five likeliest classes of each image
               predictions.png  images with their likeliest class
  detector     detections.json  objects and their masks, in COCO's format
               detections.png   images with the objects found in them
  autoencoder  features.npz     a feature vector for each image
               reconstructions.png  images, masked and reconstructed
"""

import csv
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mae_jax import convert, inference
from mae_jax.data import Source, eval_batches, files_source
from mae_jax.distributed import sharding
from mae_jax.runtime import disk, filesystem
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import STOPPED, require
from mae_jax.tasks import coco_eval, detection_eval, detection_figures, figures
from mae_jax.tools import extract, reconstruct
from mae_jax.train import evaluate as evaluation

TOP = 5
COLUMNS = 4  # images in a row of detections.png


def classify(
    model: inference.Pretrained, source: Source, out: str, *, batch_size: int, num_shown: int
) -> list[str]:
    """Writes the likeliest classes of all images, and a figure of the first few.

    Args:
      model: a classifier.
      source: the images.
      out: folder to write into.
      batch_size: images at once.
      num_shown: images in the figure.

    Returns:
      The paths written.
    """
    rows = top_classes(model, source, batch_size=batch_size)
    bad = [source.describe(int(i)) for i in np.flatnonzero(~rows["valid"])]
    say(*(f"could not be read: {name}" for name in bad), error=True)
    table = os.path.join(out, "predictions.csv")
    with disk.writing(table) as path, open(path, "w", newline="", encoding="utf-8") as file:
        _write_csv(csv.writer(file), rows, model.class_names, source)
    sheet = os.path.join(out, "predictions.png")
    shown = np.flatnonzero(rows["valid"])[:num_shown]
    if not len(shown):
        return [table]
    images = model.load_images([source.describe(int(i)) for i in shown])
    captions = [
        f"{model.class_names[rows['best'][i, 0]]} {rows['probability'][i, 0]:.0%}" for i in shown
    ]
    with disk.translate_errors(sheet):
        figures.save_png(sheet, figures.contact_sheet(images, captions))
    return [table, sheet]


def top_classes(
    model: inference.Pretrained, source: Source, *, batch_size: int
) -> dict[str, np.ndarray]:
    """The likeliest classes of each image of a source, in its order.

    Returns:
      `best` int32 [N, k], best first, with k = 5 or the number of classes if that is smaller;
      `probability` float32 [N, k]; `valid` bool [N], False where an image could not be read.
    """
    mesh = sharding.make_mesh()
    function = model.probability_function()
    top = min(TOP, len(model.class_names))

    def step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        probability, best = jax.lax.top_k(function(variables, batch["image"]), top)
        kept = {name: batch[name] for name in ("valid", "index")}
        return {"best": best, "probability": probability, **kept}

    devices = jax.device_count()
    batches = eval_batches(
        source,
        # Unreadable images are listed at the end; none of them is a reason to stop.
        data_config={**model.metadata["config"]["data"], "max_bad_fraction": 1.0},
        image_size=model.image_size,
        channels=model.channels,
        batch_size=-(-batch_size // devices) * devices,
    )
    variables = jax.device_put(model.variables, sharding.replicated(mesh))
    compiled = evaluation.compile_eval_step(step, mesh)
    parts = list(evaluation.stream(compiled, variables, batches, mesh))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    inside = rows.pop("index") >= 0
    return {name: values[inside] for name, values in rows.items()}


def _write_csv(
    out: Any, rows: dict[str, np.ndarray], classes: Sequence[str], source: Source
) -> None:
    ranks = range(1, rows["best"].shape[1] + 1)
    out.writerow(["image", *(f"{name}{i}" for i in ranks for name in ("class", "probability"))])
    for index, valid in enumerate(rows["valid"]):
        pairs = zip(rows["best"][index], rows["probability"][index], strict=True)
        answer = [x for c, p in pairs for x in (classes[c], f"{p:.4f}")] if valid else []
        out.writerow([source.describe(index), *answer])


def encode(
    model: inference.Pretrained, source: Source, out: str, *, batch_size: int, num_shown: int
) -> list[str]:
    """Writes the features of all images and, where there is a decoder, reconstructions of a few.

    Arguments and result are those of `classify`.
    """
    features = os.path.join(out, "features.npz")
    bad = set(extract.extract(model, source, features, batch_size=batch_size))
    paths = [source.describe(i) for i in range(len(source))]
    shown = [path for path in paths if path not in bad][:num_shown]
    if not (model.has_decoder and shown):
        return [features]
    grid = os.path.join(out, "reconstructions.png")
    with disk.translate_errors(grid):
        figures.save_png(grid, reconstruct.draw(model, shown))
    return [features, grid]


def find_objects(
    path: str, source: Source, out: str, *, batch_size: int, num_shown: int
) -> list[str]:
    """Writes the objects in all images, and a figure of the first few.

    Arguments and result are those of `classify`, but for:

    Args:
      path: of a detector's checkpoint.
    """
    model = convert.load(path)
    model.report.check()
    # Unreadable images are listed; none of them is a reason to stop.
    found = detection_eval.detect(model, source, batch_size=batch_size, max_bad_fraction=1.0)
    bad = sorted(set(range(len(source))) - {image.index for image in found})
    say(*(f"could not be read: {source.describe(i)}" for i in bad), error=True)
    classes, data = model.metadata["classes"], model.metadata["config"]["data"]
    table = os.path.join(out, "detections.json")
    with disk.translate_errors(out):
        os.makedirs(out, exist_ok=True)
        content = coco_eval.detections_json(found, classes, source.describe)
        filesystem.write(table, json.dumps(content).encode())
    cells = []
    for image in found[:num_shown]:
        pixels, _ = detection_figures.read_image(source, image.index, data)
        drawing = detection_figures.predicted(image, detection_figures.MIN_SCORE)
        name = os.path.basename(source.describe(image.index))
        cells.append((name, detection_figures.draw(pixels, drawing, classes)))
    if not cells:
        return [table]
    sheet = os.path.join(out, "detections.png")
    with disk.translate_errors(sheet):
        figures.save_png(sheet, detection_figures.sheet(cells, columns=COLUMNS))
    return [table, sheet]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = make_parser("tools.predict", __doc__)
    path: dict[str, Any] = {"type": filesystem.expand, "required": True}
    add = parser.add_argument
    add("--checkpoint", **path, metavar="PATH", help="a run, RUN:best, a step, or weights")
    images = "folder (with its subfolders), list file, image, or quoted glob pattern"
    add("--images", **path, metavar="PATH", help=images)
    add("--out", **path, metavar="DIR", help="folder to write the results to")
    size = "images per batch, across all devices (default: %(default)s)"
    add("--batch_size", type=int, default=64, metavar="N", help=size)
    shown = "images in the figure (default: %(default)s)"
    add("--num_shown", type=int, default=24, metavar="N", help=shown)
    add("--ema", action="store_true", help="use the averaged weights of the run")
    args = parser.parse_args(argv)
    setup_logging()
    require(args.batch_size > 0, f"--batch_size={args.batch_size} must be positive")
    source = files_source(args.images)
    if detection_eval.is_detector(args.checkpoint):
        require(not args.ema, "--ema: detectors have no averaged weights")
        batch_size = min(args.batch_size, detection_eval.BATCH_SIZE)
        options = {"batch_size": batch_size, "num_shown": args.num_shown}
        files = find_objects(args.checkpoint, source, args.out, **options)
        say(*(f"{path}: written" for path in files))
        return 0
    model = inference.load(args.checkpoint, ema=args.ema)
    write = classify if model.class_names else encode
    try:
        files = write(model, source, args.out, batch_size=args.batch_size, num_shown=args.num_shown)
    except extract.Stopped:
        say("stopped; run the same command to continue", error=True)
        return STOPPED
    say(*(f"{path}: written" for path in files))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
