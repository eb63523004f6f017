"""Length, batch and warm-up by the number of training images, for recipes that leave them open.

A recipe leaves a value open by setting it to -1. docs/finetuning.md shows the table with reasons.
"""

from typing import Any, NamedTuple

from mae_jax.optim.schedules import num_steps

OPEN = -1
EVALUATIONS, FIGURES = 20, 10  # of a run


class Preset(NamedTuple):
    """Values for sets of up to `images` training images."""

    images: float
    batch_size: int
    epochs: float
    warmup_epochs: float


_SMALL, _MEDIUM, _LARGE = 5_000, 100_000, float("inf")
# Epochs fall as sets grow, since it is updates that count: pre-training on 1 % and 10 % of ImageNet
# works as well as on all of it if the number of updates is kept (arXiv 2112.10740, section 4).
# The last row of each is the paper's: tables 8 to 11.
PRESETS = {
    "pretrain": (
        Preset(_SMALL, 64, 800, 20),
        Preset(_MEDIUM, 256, 400, 20),
        Preset(_LARGE, 4096, 400, 40),
    ),
    "finetune": (
        Preset(_SMALL, 64, 100, 10),
        Preset(_MEDIUM, 256, 100, 5),
        Preset(_LARGE, 1024, 100, 5),
    ),
    "probe": (
        Preset(_SMALL, 256, 90, 10),
        Preset(_MEDIUM, 1024, 90, 10),
        Preset(_LARGE, 1024, 90, 10),  # not 16384, because it uses AdamW
    ),
    # As long as ViTDet's 100 epochs of COCO (2203.16527), and longer for sets that are over sooner.
    "detect": (
        Preset(_SMALL, 16, 200, 2),
        Preset(_MEDIUM, 64, 100, 1),
        Preset(_LARGE, 64, 100, 1),
    ),
    "scratch": (
        Preset(_SMALL, 64, 300, 20),
        Preset(_MEDIUM, 256, 300, 20),
        Preset(_LARGE, 4096, 300, 20),
    ),
}


def fill(config: Any, num_images: int) -> None:
    """Replaces open values in place.

    Args:
      config: the whole configuration.
      num_images: to train on.
    """
    rows = PRESETS[_kind(config)]
    preset = next(row for row in rows if num_images <= row.images)
    if config.batch_size == OPEN:
        config.batch_size = preset.batch_size
    if config.epochs == OPEN:
        config.epochs = float(preset.epochs)
    if "optim" in config and config.optim.warmup_epochs == OPEN:
        config.optim.warmup_epochs = float(preset.warmup_epochs)


def largest_batch(config: Any) -> int:
    """The largest batch in the table, which is the paper's."""
    return PRESETS[_kind(config)][-1].batch_size


def fill_intervals(config: Any, num_images: int) -> None:
    """Replaces open intervals of evaluations and figures, once batch and length are known."""
    steps = config.steps or num_steps(config.epochs, num_images, config.batch_size)
    for key, times in (("eval_every", EVALUATIONS), ("figure_every", FIGURES)):
        if config[key] == OPEN:
            config[key] = max(1, steps // times)


def _kind(config: Any) -> str:
    if config.task == "detect":
        return "detect"
    if config.task != "classify":
        return "pretrain"
    if config.trainable == "head":
        return "probe"
    return "finetune" if config.init_from and config.init_weights else "scratch"
