"""Initializes a classifier with the encoder of another run (official `main_finetune.py`)."""

import logging
from typing import Any

import numpy as np

from mae_jax.models.pos_embed import resize_table, sincos_2d
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import grid_size
from mae_jax.runtime import text
from mae_jax.runtime.errors import require
from mae_jax.train.task import PretrainedParams

log = logging.getLogger(__name__)


def check_same_heads(theirs: dict[str, Any], num_heads: int) -> None:
    """Refuses weights trained with another number of heads, which no shape would reveal."""
    require(
        theirs["num_heads"] == num_heads,
        f"--config.init_from has {theirs['num_heads']} attention heads, but "
        f"--config.model.num_heads is {num_heads}",
    )


def warn_of_other_pixels(theirs: dict[str, Any], pixels: dict[str, tuple[float, ...]]) -> None:
    """Warns if a checkpoint's `metadata["data"]` has another mean or std than `pixels`."""
    for key, ours in pixels.items():
        if not np.allclose(theirs[key], ours):
            log.warning(
                "--config.data.%s=%s, but the weights of --config.init_from expect %s",
                *(key, tuple(ours), tuple(theirs[key])),
            )


def adopt_encoder(
    model: VisionTransformer,
    classes: list[str] | None,
    weights: dict[str, np.ndarray],
    metadata: dict[str, Any],
) -> PretrainedParams:
    """Selects the weights of an autoencoder, or of another classifier, that `model` reuses.

    The position table, fixed in pre-training, becomes a parameter and is resized to the grid. The
    head is reused only for the same classes and if neither model normalizes its input by
    BatchNorm; otherwise it is reinitialized.

    Args:
      model: the classifier to initialize.
      classes: its classes; None if it has no head.
      weights: parameters of the other run, by name.
      metadata: of the other run's checkpoint.
    """
    theirs = metadata["model"]
    check_same_heads(theirs, model.num_heads)
    old_grid = grid_size(tuple(theirs["image_size"]), tuple(theirs["patch_size"]))
    reused = {f"blocks_{i}" for i in range(theirs["depth"])} | {"patch_embed", "cls_token"}
    reinitialized = ["head/"]
    if theirs["kind"] == "mae":
        table = sincos_2d(theirs["embed_dim"], old_grid)[None]
        reused |= {"norm"} if model.pool == "cls" else set()
        reinitialized += ["fc_norm/"]
    else:
        table = weights.get("pos_embed")
        norm = "norm" if model.pool == "cls" else "fc_norm"
        reused |= {norm}
        if theirs["pool"] != model.pool:
            reinitialized.append(f"{norm}/")
        elif (
            theirs["num_classes"]
            and text.same_names(metadata["classes"], classes)
            and not (theirs["head_norm"] or model.head_norm)
        ):
            reused |= {"head"}
            reinitialized = []
    arrays = {name: x for name, x in weights.items() if name.split("/")[0] in reused}
    if table is not None:
        if old_grid != model.grid:
            log.info("position table resized from %s to %s patches", old_grid, model.grid)
        arrays["pos_embed"] = resize_table(table, old_grid, model.grid)
    unused = tuple(sorted(weights.keys() - arrays.keys()))
    return PretrainedParams(arrays, reinitialized=tuple(reinitialized), unused=unused)
