"""Evaluates a classifier or a detector on held-out or other images.

Examples:
  python -m mae_jax.tools.evaluate --checkpoint runs/finetune/demo --out results
  python -m mae_jax.tools.evaluate --checkpoint runs/finetune/vit_b \\
      --images DIR --out results
  python -m mae_jax.tools.evaluate --checkpoint runs/detection/folder:best \\
      --images DIR/images --annotations DIR/annotations.json --out results

The checkpoint is a run, one of its steps, or weights (docs/weights.md). It is
evaluated on the run's held-out images, or with --images on all images of a
folder. What is written into --out depends on the model:

  classifier   predictions.csv, per_class.csv, confusion.png
  detector     detections.json (COCO's format), per_class.csv, per_image.csv,
               worst.png: the images with the most mistakes
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from mae_jax import convert
from mae_jax.data import Source, eval_batches, evaluation_folder
from mae_jax.distributed import sharding
from mae_jax.models import factory
from mae_jax.runtime import disk, filesystem, text
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import require
from mae_jax.tasks import detection_eval, detection_report, figures
from mae_jax.tasks.classification_eval import Predictions, Predictor
from mae_jax.tasks.held_out import held_out

BATCH_SIZE = 256


def evaluate(
    path: str,
    *,
    images: str = "",
    classes: Sequence[str] | None = None,
    root: str = "",
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, float], Predictions, Source]:
    """Evaluates the checkpoint at `path` on its held-out images, or on those of a folder.

    Args:
      path: a classification run, one of its steps, or weights (see `convert.load`).
      images: a folder to evaluate on instead (see `data.evaluation_folder`).
      classes: names of the folders of `images` in the order of the model's head; None: as trained.
      root: where the run's data are now; "" if they have not moved.
      batch_size: global batch size; rounded up to a multiple of the number of devices.

    Returns:
      Metrics; the predictions (of the averaged weights, if the run kept them); the images.

    Raises:
      UsageError: not a classifier, the run's images have changed, or the classes differ.
    """
    model, average = convert.load_with_average(path)
    model.report.check()
    metadata, fields = model.metadata, model.fields
    require(
        model.kind == "vit" and fields["num_classes"] > 0,
        f"{path} is not a classifier: fine-tune or probe it first (configs/finetune, "
        "configs/linprobe)",
    )
    models = {"": model} | ({"ema_": average} if average else {})  # the averaged weights last
    source = _class_folders(images, classes, root, model, path)
    classes = list(source.classes or ())
    vit = factory.build_vit(fields, dtype=metadata["config"]["model"]["dtype"])
    mesh = sharding.make_mesh()
    mean, std = (tuple(metadata["data"][key]) for key in ("mean", "std"))
    predictor = Predictor(vit, classes, mean=mean, std=std)
    metrics: dict[str, float] = {}
    predictions: Any = None
    devices = jax.device_count()
    for prefix, weights in models.items():
        batches = eval_batches(
            source,
            data_config=metadata["config"]["data"],
            image_size=vit.image_size,
            channels=vit.channels,
            batch_size=-(-batch_size // devices) * devices,
        )
        variables = jax.device_put(weights.variables(), sharding.replicated(mesh))
        predictions = predictor(variables, batches, mesh)
        metrics |= {prefix + name: value for name, value in predictions.metrics().items()}
    return metrics, predictions, source


def _class_folders(
    images: str, class_names: Sequence[str] | None, root: str, model: convert.Weights, path: str
) -> Source:
    """The requested folder, or the held-out images of the run."""
    classes, number = model.metadata["classes"], model.fields["num_classes"]
    if images:
        require(
            class_names is None or len(class_names) == number,
            f"--classes has {len(class_names or ())} names for the {number} classes of {path}",
        )
        names = classes if class_names is None else list(class_names)
        return evaluation_folder(images, names, number=number)
    require(class_names is None, "--classes needs --images, whose folders it names")
    source = held_out(model, path, root)
    require(
        text.same_names(source.classes, classes),
        "the classes of the held-out images differ from those the checkpoint was trained on",
    )
    return source


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = make_parser("tools.evaluate", __doc__)
    path: dict[str, Any] = {"type": filesystem.expand, "default": ""}
    folder: dict[str, Any] = path | {"metavar": "DIR"}
    add = parser.add_argument
    checkpoint = "a run, RUN:best, one of its steps, or weights"
    add("--checkpoint", **path, required=True, metavar="PATH", help=checkpoint)
    add("--out", **folder, required=True, help="folder to write the results to")
    images = "images to evaluate on, in one folder per class (default: the run's held-out images)"
    add("--images", **folder, help=images)
    names = "text file that names these folders, one per line, in the order of the model's head"
    add("--classes", **path, metavar="FILE", help=names)
    add("--root", **folder, help="new location of the run's data, if they have moved")
    boxes = "detectors: JSON file in COCO's format with the objects of --images"
    add("--annotations", **path, metavar="FILE", help=boxes)
    size = "images per batch, across all devices (default: 256, or 8 for detectors)"
    add("--batch_size", type=int, default=0, metavar="N", help=size)
    args = parser.parse_args(argv)
    setup_logging()
    require(
        not args.annotations or bool(args.images),
        "--annotations needs --images, the folder that its images are in",
    )
    if detection_eval.is_detector(args.checkpoint):
        require(not args.classes, "--classes is for classifiers")
        scores, files = detection_report.evaluate(
            args.checkpoint,
            out=args.out,
            images=args.images,
            annotations=args.annotations,
            root=args.root,
            batch_size=args.batch_size or detection_eval.BATCH_SIZE,
        )
        say(*(f"{name:<16} {value:.6g}" for name, value in scores.metrics.items()), *files)
        return 0
    require(not args.annotations, "--annotations is for detectors")
    metrics, predictions, source = evaluate(
        args.checkpoint,
        images=args.images,
        classes=text.lines(args.classes) if args.classes else None,
        root=args.root,
        batch_size=args.batch_size or BATCH_SIZE,
    )
    return _write_classification(metrics, predictions, source, args.out)


def _write_classification(
    metrics: dict[str, float], predictions: Predictions, source: Source, out: str
) -> int:
    image = figures.confusion_matrix(predictions.confusion(), predictions.classes)
    with disk.translate_errors(out):
        files = predictions.write(out, source.describe)
        files.append(os.path.join(out, "confusion.png"))
        figures.save_png(files[-1], image)
    for name, value in metrics.items():
        say(f"{name:<10} {value:.6g}")
    say(*files)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
