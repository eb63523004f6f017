"""Evaluates a classifier: predictions, accuracy per class, confusion matrix.

Examples:
  python -m mae_jax.tools.evaluate --checkpoint runs/finetune/demo --out results
  python -m mae_jax.tools.evaluate --checkpoint runs/finetune/vit_b --out r \\
      --images DIR

The checkpoint is a classification run, one of its steps, or the weights of any
classifier (docs/weights.md). It is evaluated on the run's held-out images, or
on all images of a folder that has one folder per class. Writes predictions.csv,
per_class.csv and confusion.png into --out.
"""

import argparse
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
from mae_jax.runtime.cli import run_command, say, setup_logging
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
    """Answers of the checkpoint at `path` for all held-out images.

    Args:
      path: a classification run, one of its steps, or weights (see `convert.load`).
      images: a folder to evaluate on instead (see `data.evaluation_folder`).
      classes: names of the folders of `images` in the order of the model's head; None: its own.
      root: where the run's data are now; "" where they were.
      batch_size: images at once on all devices; rounded up to a multiple of their number.

    Returns:
      Metrics; the answers (of the averaged weights, where the run kept them); their images.

    Raises:
      UsageError: not a classifier, or other images than the run's, or of other classes.
    """
    model, average = convert.load_with_average(path)
    model.report.check()
    metadata, fields = model.metadata, model.fields
    require(
        model.kind == "vit" and fields["num_classes"] > 0,
        f"{path} is not a classifier: fine-tune or probe it first (configs/finetune, "
        "configs/linprobe)",
    )
    models = {"": model} | ({"ema_": average} if average else {})
    source = _images(images, classes, root, model, path)
    classes = list(source.classes or ())
    vit = factory.build_vit(fields, dtype=metadata["config"]["model"]["dtype"])
    mesh = sharding.make_mesh()
    mean, std = (tuple(metadata["data"][key]) for key in ("mean", "std"))
    predictor = Predictor(vit, classes, mean=mean, std=std)
    metrics: dict[str, float] = {}
    answers: Any = None
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
        answers = predictor(variables, batches, mesh)
        metrics |= {prefix + name: value for name, value in answers.metrics().items()}
    return metrics, answers, source


def _images(
    images: str, named: Sequence[str] | None, root: str, model: convert.Weights, path: str
) -> Source:
    """The folder that is asked for, or the held-out images of the run itself."""
    classes, number = model.metadata["classes"], model.fields["num_classes"]
    if images:
        require(
            named is None or len(named) == number,
            f"--classes has {len(named or ())} names for the {number} classes of {path}",
        )
        names = classes if named is None else list(named)
        return evaluation_folder(images, names, number=number)
    require(named is None, "--classes names the folders of --images: give them, too")
    require(
        bool(model.run), f"{path} belongs to no run that has held-out images: give --images DIR"
    )
    data = ml_collections.ConfigDict(model.metadata["config"]["data"])
    data.root = root or data.root
    fields = model.fields
    # By the list of files that the run kept, if it did.
    found = make_sources(
        data, image_size=fields["image_size"], channels=fields["channels"], workdir=model.run
    )
    was, now = model.metadata["data"]["source"], found.train.fingerprint()
    other = [key for key in was if key != "root" and was[key] != now.get(key)]
    require(
        not other and found.eval is not None,
        f"the run's images are not there any more ({', '.join(other) or 'none held out'}): "
        "give --images DIR",
    )
    assert found.eval is not None
    require(
        text.same_names(found.eval.classes, classes),
        "the held-out images have other classes than the checkpoint was trained for",
    )
    return found.eval


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mae_jax.tools.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place: dict[str, Any] = {"type": filesystem.expand, "default": ""}
    add = parser.add_argument
    add("--checkpoint", **place, required=True, help="a run, one of its steps, or weights")
    add("--out", **place, required=True, help="folder to write into")
    add("--images", **place, help="folder with a folder for each class")
    names = "names of these folders, one a line, in the order of the model's head"
    add("--classes", **place, metavar="FILE", help=names)
    add("--root", **place, help="where the run's own data are now")
    add("--batch_size", type=int, default=256, help="images at once")
    args = parser.parse_args(argv)
    setup_logging()
    metrics, answers, source = evaluate(
        args.checkpoint,
        images=args.images,
        classes=text.lines(args.classes) if args.classes else None,
        root=args.root,
        batch_size=args.batch_size,
    )
    image = figures.confusion_matrix(answers.confusion(), answers.classes)
    with disk.translate_errors(args.out):
        files = answers.write(args.out, source.describe)
        files.append(os.path.join(args.out, "confusion.png"))
        figures.save_png(files[-1], image)
    for name, value in metrics.items():
        say(f"{name:<10} {value:.6g}")
    say(*files)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
