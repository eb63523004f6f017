"""Accuracy of a classifier's checkpoint: predictions, per-class accuracy, confusion matrix.

python -m mae_jax.tools.evaluate --checkpoint RUN_OR_STEP --out DIR [--images DIR]

Evaluates on the held-out images that the run had, or on all images of a folder that has a folder
for each class. Writes predictions.csv, per_class.csv and confusion.png into --out.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from mae_jax import checkpoint, pictures, plots, sharding
from mae_jax.config import require
from mae_jax.console import run_command, setup_logging
from mae_jax.data import Source, eval_batches, evaluation_folder, make_sources
from mae_jax.params import merge
from mae_jax.scores import Predictions
from mae_jax.tasks import build
from mae_jax.tasks.predict import Predictor


def evaluate(
    path: str, *, images: str = "", root: str = "", batch_size: int = 256
) -> tuple[dict[str, float], Predictions, Source]:
    """Answers of the checkpoint at `path` for all held-out images.

    Args:
      path: a classification run's folder or one step's (see `checkpoint.find`).
      images: a folder to evaluate on instead (see `data.evaluation_folder`).
      root: where the run's data are now; "" where they were.
      batch_size: images at once on all devices; rounded up to a multiple of their number.

    Returns:
      Metrics; the answers (of the averaged weights, where the run kept them); their images.

    Raises:
      UsageError: not a classifier, or other images than the run's, or of other classes.
    """
    metadata = checkpoint.load_metadata(path)
    require(
        metadata["task"] == "classify",
        f"{path} is a {metadata['task']} run, not a classifier: fine-tune or probe it first "
        "(configs/finetune, configs/linprobe)",
    )
    config = metadata["config"]
    fields = {k: v for k, v in metadata["model"].items() if k not in ("kind", "size")}
    model = build.build_vit(fields, dtype=config["model"]["dtype"])
    data = ml_collections.ConfigDict(config["data"])
    data.root = root or data.root
    if images:
        source: Source = evaluation_folder(images, metadata["classes"])
    else:
        source = _held_out(data, model, metadata, checkpoint.find(path)[0])
    mesh = sharding.make_mesh()
    mean, std = (tuple(metadata["data"][key]) for key in ("mean", "std"))
    predictor = Predictor(model, metadata["classes"], mean=mean, std=std)
    arrays = checkpoint.load_arrays(path, ("params", "model_state", "ema"))
    metrics: dict[str, float] = {}
    answers: Any = None
    for prefix in ("", "ema_") if arrays["ema"] else ("",):
        params = merge(arrays["params"], arrays["ema"] if prefix else {})
        variables = {"params": params, **arrays["model_state"]}
        variables = jax.device_put(variables, sharding.replicated(mesh))
        devices = jax.device_count()
        batches = eval_batches(
            source,
            data_config=data,
            image_size=model.image_size,
            channels=model.channels,
            batch_size=-(-batch_size // devices) * devices,
        )
        answers = predictor(variables, batches, mesh)
        metrics |= {prefix + name: value for name, value in answers.metrics().items()}
    return metrics, answers, source


def _held_out(data: Any, model: Any, metadata: dict[str, Any], run: str) -> Source:
    """The held-out images of the run itself; by the list of files that it kept, if it did."""
    found = make_sources(data, image_size=model.image_size, channels=model.channels, workdir=run)
    was, now = metadata["data"]["source"], found.train.fingerprint()
    other = [key for key in was if key != "root" and was[key] != now.get(key)]
    require(
        not other and found.eval is not None,
        f"the run's images are not there any more ({', '.join(other) or 'none held out'}): "
        "give --images DIR",
    )
    assert found.eval is not None
    require(
        list(found.eval.classes or ()) == metadata["classes"],
        "the held-out images have other classes than the checkpoint was trained for",
    )
    return found.eval


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mae_jax.tools.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="a run's folder or one step's")
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--images", default="", help="folder with a folder for each class")
    parser.add_argument("--root", default="", help="where the run's own data are now")
    parser.add_argument("--batch_size", type=int, default=256, help="images at once")
    args = parser.parse_args(argv)
    setup_logging()
    metrics, answers, source = evaluate(
        args.checkpoint, images=args.images, root=args.root, batch_size=args.batch_size
    )
    files = answers.write(args.out, source.describe)
    image = plots.confusion_matrix(answers.confusion(), answers.classes)
    files.append(os.path.join(args.out, "confusion.png"))
    pictures.save(files[-1], image)
    for name, value in metrics.items():
        print(f"{name:<10} {value:.6g}")
    print("\n".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
