"""Accuracy of a classifier's checkpoint: predictions, per-class accuracy, confusion matrix.

python -m mae_jax.tools.evaluate --checkpoint RUN_OR_STEP --out DIR [--images DIR]

Evaluates on the held-out images that the run had, or on all images of a folder that has a folder
for each class. Writes predictions.csv, per_class.csv and confusion.png into --out.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from mae_jax import checkpoint, pictures, plots, sharding
from mae_jax.config import require
from mae_jax.console import run_command, setup_logging
from mae_jax.data import Sources, evaluation_folder
from mae_jax.scores import Predictions
from mae_jax.state import abstract_state
from mae_jax.tasks.classify import Classify


def evaluate(
    path: str, *, images: str = "", root: str = "", batch_size: int = 0
) -> tuple[Classify, dict[str, float], Predictions]:
    """Answers of the checkpoint at `path` for all held-out images.

    Args:
      path: a classification run's folder or one step's (see `checkpoint.find`).
      images: a folder to evaluate on instead (see `data.evaluation_folder`).
      root: where the run's data are now; "" where they were.
      batch_size: images at once; 0: as many as the run's evaluation takes.

    Returns:
      The task, its metrics, and the answers (of the averaged weights, where the run kept them).

    Raises:
      UsageError: not a classifier, or the images have other classes than it was trained for.
    """
    folder, step = checkpoint.find(path)
    metadata = checkpoint.load_metadata(path)
    require(
        metadata["task"] == "classify",
        f"{path} is a {metadata['task']} run, not a classifier: fine-tune or probe it first "
        "(configs/finetune, configs/linprobe)",
    )
    config: Any = ml_collections.ConfigDict(metadata["config"])
    # However many devices the run had, evaluate on those that are here.
    changes: dict[str, Any] = {"eval_images": 0, "mesh.data": -1, "mesh.fsdp": 1}
    if root:
        changes["data.root"] = root
    if batch_size:
        changes |= {"batch_size": batch_size, "grad_accum": 1, "mix.group": 1}
        changes["head.batch_norm_group"] = 0
    config.update_from_flattened_dict(changes)
    classes, found = metadata["classes"], None
    if images:
        source = evaluation_folder(images, classes)
        found = Sources(source, source)
    task = Classify(config, "", found)
    require(
        task.classes == classes,
        f"the images have {len(task.classes)} classes ({', '.join(task.classes[:3])}, ...), the "
        f"checkpoint was trained for {len(classes)} ({', '.join(classes[:3])}, ...): wrong folder?",
    )
    mesh = sharding.make_mesh(**config.mesh)
    with contextlib.closing(checkpoint.Checkpointer(folder, read_only=True)) as saver:
        state = saver.restore(step, abstract_state(task, mesh))
    metrics = task.evaluate(state, mesh)
    assert task.predictions is not None
    return task, metrics, task.predictions


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
    parser.add_argument("--batch_size", type=int, default=0, help="images at once")
    args = parser.parse_args(argv)
    setup_logging()
    task, metrics, predictions = evaluate(
        args.checkpoint, images=args.images, root=args.root, batch_size=args.batch_size
    )
    files = predictions.write(args.out, task.held_out.describe)
    image = plots.confusion_matrix(predictions.confusion(), task.classes)
    files.append(os.path.join(args.out, "confusion.png"))
    pictures.save(files[-1], image)
    for name, value in metrics.items():
        print(f"{name:<10} {value:.6g}")
    print("\n".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
