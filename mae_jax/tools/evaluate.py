"""Evaluates a classifier: predictions, per-class accuracy, confusion matrix.

Examples:
  python -m mae_jax.tools.evaluate --checkpoint runs/finetune/demo --out results
  python -m mae_jax.tools.evaluate --checkpoint runs/finetune/vit_b \\
      --images DIR --out results

The checkpoint is a classification run, one of its steps, or the weights of any
classifier (docs/weights.md). It is evaluated on the run's held-out images, or
with --images on all images of a folder. predictions.csv, per_class.csv and
confusion.png are written to --out.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from mae_jax import convert
from mae_jax.data import Source, eval_batches, evaluation_folder, make_sources
from mae_jax.distributed import sharding
from mae_jax.models import factory
from mae_jax.runtime import disk, filesystem, text
from mae_jax.runtime.cli import make_parser, run_command, say, setup_logging
from mae_jax.runtime.errors import require
from mae_jax.tasks import figures
from mae_jax.tasks.classification_eval import Predictions, Predictor


def evaluate(
    path: str,
    *,
    images: str = "",
    classes: Sequence[str] | None = None,
    root: str = "",
    batch_size: int = 256,
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
    source = _images(images, classes, root, model, path)
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


def _images(
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
    require(bool(model.run), f"{path} belongs to no run with held-out images: pass --images DIR")
    data = ml_collections.ConfigDict(model.metadata["config"]["data"])
    data.root = root or data.root
    fields = model.fields
    # Uses the list of files that the run saved, if there is one.
    sources = make_sources(
        data, image_size=fields["image_size"], channels=fields["channels"], workdir=model.run
    )
    old, new = model.metadata["data"]["source"], sources.train.fingerprint()
    changed = [key for key in old if key != "root" and old[key] != new.get(key)]
    require(
        not changed and sources.eval is not None,
        f"the run's images have changed ({', '.join(changed) or 'none held out'}): "
        "pass --images DIR",
    )
    assert sources.eval is not None
    require(
        text.same_names(sources.eval.classes, classes),
        "the classes of the held-out images differ from those the checkpoint was trained on",
    )
    return sources.eval


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
    size = "images per batch, across all devices (default: %(default)s)"
    add("--batch_size", type=int, default=256, metavar="N", help=size)
    args = parser.parse_args(argv)
    setup_logging()
    metrics, predictions, source = evaluate(
        args.checkpoint,
        images=args.images,
        classes=text.lines(args.classes) if args.classes else None,
        root=args.root,
        batch_size=args.batch_size,
    )
    image = figures.confusion_matrix(predictions.confusion(), predictions.classes)
    with disk.translate_errors(args.out):
        files = predictions.write(args.out, source.describe)
        files.append(os.path.join(args.out, "confusion.png"))
        figures.save_png(files[-1], image)
    for name, value in metrics.items():
        say(f"{name:<10} {value:.6g}")
    say(*files)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
