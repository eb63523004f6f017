"""Initializes a classifier or a detector with the encoder of another run."""

import logging
from typing import Any

import numpy as np

from mae_jax.convert.surgery import resample_kernel
from mae_jax.models.pos_embed import resize_table, sincos_2d
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import grid_size
from mae_jax.optim.param_groups import BACKBONE
from mae_jax.runtime import text
from mae_jax.runtime.errors import require
from mae_jax.train.task import PretrainedParams

PATCH_KERNEL = "patch_embed/proj/kernel"
# Parameters of a detector that no encoder has; those that depend on the classes.
_DETECTOR_ONLY = (
    "pyramid/",
    "rpn/",
    "box_head/",
    "mask_head/",
    f"{BACKBONE}window_positions/",
    f"{BACKBONE}global_positions/",
)
_PER_CLASS = ("box_head/scores/", "box_head/deltas/", "mask_head/predictor/")

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


def adopt_backbone(
    fields: dict[str, Any],
    classes: list[str],
    weights: dict[str, np.ndarray],
    metadata: dict[str, Any],
) -> PretrainedParams:
    """Selects the weights of an encoder, or of another detector, for a model with a backbone.

    Names are mapped explicitly: the final norm, which a detector does not have, is never used.
    The position table is resized if the grid differs, and so are patches (14 to 16 pixels for
    ViT-H). Everything that the encoder does not have starts from scratch.

    Args:
      fields: of the detector, from `factory.detector_fields`.
      classes: of the detector.
      weights: parameters of the other run, by name.
      metadata: of the other run's checkpoint.
    """
    theirs = metadata["model"]
    check_same_heads(theirs, fields["num_heads"])
    if theirs["kind"] == "mask_rcnn":
        return _same_detector(classes, weights, metadata)
    kept = {f"blocks_{i}" for i in range(theirs["depth"])} | {"patch_embed"}
    arrays = {name: x for name, x in weights.items() if name.split("/")[0] in kept}
    grid = grid_size(tuple(theirs["image_size"]), tuple(theirs["patch_size"]))
    if theirs["kind"] == "mae":
        table = sincos_2d(theirs["embed_dim"], grid)[None]
    else:
        table = weights["pos_embed"]
    if grid != tuple(fields["table_grid"]):
        log.info("position table resized from %s to %s patches", grid, fields["table_grid"])
    arrays["pos_embed"] = resize_table(table, grid, tuple(fields["table_grid"]))
    patch = tuple(fields["patch_size"])
    if tuple(theirs["patch_size"]) != patch:
        log.info("patches resized from %s to %s pixels", tuple(theirs["patch_size"]), patch)
        arrays[PATCH_KERNEL] = resample_kernel(arrays[PATCH_KERNEL], patch)
    positions = [f"{BACKBONE}blocks_{i}/attn/rel_pos_" for i in range(theirs["depth"])]
    return PretrainedParams(
        {f"{BACKBONE}{name}": x for name, x in arrays.items()},
        reinitialized=(*_DETECTOR_ONLY, *positions),
        unused=tuple(sorted(weights.keys() - arrays.keys())),
    )


def _same_detector(
    classes: list[str], weights: dict[str, np.ndarray], metadata: dict[str, Any]
) -> PretrainedParams:
    """All weights of another detector, except the outputs per class if its classes differ."""
    if text.same_names(metadata["classes"], classes):
        return PretrainedParams(weights)
    kept = {name: x for name, x in weights.items() if not name.startswith(_PER_CLASS)}
    unused = tuple(sorted(weights.keys() - kept.keys()))
    return PretrainedParams(kept, reinitialized=_PER_CLASS, unused=unused)


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
    require(
        theirs["kind"] != "mask_rcnn",
        "--config.init_from is a detector, whose encoder has windows and relative positions: use "
        "the weights it was fine-tuned from",
    )
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
