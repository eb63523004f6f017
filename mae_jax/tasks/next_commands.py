"""What to do with a finished run, as commands to copy."""

import shlex
from typing import Any

DIR = "DIR"  # stands for a folder of images if the run's are not in one


def after_pretraining(config: Any, workdir: str, *, labeled: bool) -> list[str]:
    """Reconstructions and features; with labels also fine-tuning and kNN.

    Args:
      config: of the run.
      workdir: of the run, as the commands should name it.
      labeled: whether the images have labels.
    """
    use = ("--checkpoint", workdir, "--images", _images(config), "--out")
    commands = [
        ("mae_jax.tools.reconstruct", *use, "reconstructions.png"),
        ("mae_jax.tools.extract", *use, "features.npz"),
    ]
    if labeled:
        # Generated images, and recipes of a fixed number of steps, are a first look.
        quick = ":quick" if config.data.source == "shapes" or config.steps else ""
        more = (f"--config.init_from={workdir}", *_data_flags(config.data))
        commands += [
            ("mae_jax.main", f"--config=configs/finetune/folder.py{quick}", *more),
            ("mae_jax.main", "--config=configs/knn/folder.py", *more),
        ]
    return list(map(_line, commands))


def after_classification(config: Any, workdir: str, *, held_out: bool) -> list[str]:
    """Evaluation, predictions and export.

    Args:
      config: of the run.
      workdir: of the run, as the commands should name it.
      held_out: whether the run has held-out images.
    """
    # Hugging Face's ViT reads the class token.
    kind = "hf_vit" if config.head.pool == "cls" else "timm"
    use = ("--checkpoint", workdir)
    commands = [
        ("mae_jax.tools.evaluate", *use, "--out", "evaluation"),
        ("mae_jax.tools.predict", *use, "--images", _images(config), "--out", "predictions"),
        ("mae_jax.tools.convert", "--from", workdir, "--to", kind, "--format", kind),
    ]
    return list(map(_line, commands[not held_out :]))


def after_detection(config: Any, workdir: str) -> list[str]:
    """Evaluation and predictions; arguments as for the others."""
    use = ("--checkpoint", f"{workdir}:best" if config.checkpoint.keep_best else workdir)
    images = f"{config.data.root}/images" if config.data.source == "coco" else DIR
    commands = [
        ("mae_jax.tools.evaluate", *use, "--out", "evaluation"),
        ("mae_jax.tools.predict", *use, "--images", images, "--out", "predictions"),
    ]
    return list(map(_line, commands))


def _images(config: Any) -> str:
    return config.data.root if config.data.source == "folder" else DIR


def _data_flags(data: Any) -> list[str]:
    """Flags with which a recipe for a folder reads the same data."""
    usual = {"source": "folder", "root": "", "split": "train", "eval_split": ""}
    if data.source == "shapes":
        usual = {"source": "folder"}
    elif data.source == "tfds":
        usual |= {"name": ""}
    return [f"--config.data.{key}={data[key]}" for key in usual if data[key] != usual[key]]


def _line(words: tuple[str, ...]) -> str:
    return f"python -m {shlex.join(words)}"
