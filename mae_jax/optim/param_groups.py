"""Parameter groups by name: weight decay, layer-wise learning rates, partial fine-tuning."""

import re
from collections.abc import Callable

from mae_jax.runtime.errors import UsageError

Decays = Callable[[str, int], bool]  # whether weight decay applies, by name and number of axes
TOKENS_AND_POSITIONS = ("cls_token", "pos_embed")
BACKBONE = "backbone/"  # prefix of the encoder's parameters in larger models
_SHARED_POSITIONS = ("window_positions", "global_positions")  # `models.vitdet.PositionTable`
_RELATIVE_POSITIONS = re.compile(rf".*/rel_pos_[hw]|({'|'.join(_SHARED_POSITIONS)})/table")
_BLOCK_NORM = re.compile(r"backbone/blocks_\d+/norm[12]/")


def decays(name: str, ndim: int) -> bool:
    """Weight decay of pre-training: not for biases and norms (official `add_weight_decay`).

    Class and mask tokens have three axes, so they are decayed.
    """
    return ndim > 1 and not name.endswith("/bias")


def decays_finetuning(name: str, ndim: int) -> bool:
    """Weight decay of fine-tuning: nor for tokens and positions (official `param_groups_lrd`)."""
    encoder = name.removeprefix(BACKBONE)
    fixed = encoder in TOKENS_AND_POSITIONS or bool(_RELATIVE_POSITIONS.fullmatch(encoder))
    return decays(name, ndim) and not fixed


def decays_vitdet(name: str, ndim: int) -> bool:
    """Weight decay of ViTDet-B and -L as released: all but the encoder's norms and positions.

    Biases, relative positions, and the norms of pyramid and heads are decayed, since detectron2
    does not list its channel LayerNorm among the norms.
    """
    return name != "backbone/pos_embed" and not _BLOCK_NORM.match(name)


def decays_all(name: str, ndim: int) -> bool:
    """Weight decay of all parameters, as in ViTDet-H as released."""
    return True


# `optim.decays`
DECAYS: dict[str, Decays] = {
    "weights": decays_finetuning,
    "vitdet": decays_vitdet,
    "all": decays_all,
}


def layer_id(name: str, depth: int) -> int:
    """Layer of a classifier's parameter for layer-wise decay (official `get_layer_id_for_vit`).

    0 for the embeddings, 1 + i for block i, depth + 1 for everything after the blocks.

    Raises:
      UsageError: the parameter belongs to no layer.
    """
    top = name.split("/")[0]
    if top in (*TOKENS_AND_POSITIONS, "patch_embed"):
        return 0
    if match := re.fullmatch(r"blocks_(\d+)", top):
        return int(match[1]) + 1
    if top in ("norm", "fc_norm", "head", *_SHARED_POSITIONS):
        return depth + 1
    raise UsageError(f"no layer is known for the parameter {name}: set optim.layer_decay=1")


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Factor on the learning rate and weight decay of a parameter: decay ** (layers above it)."""
    return decay ** (depth + 1 - layer_id(name, depth))


def backbone_scale(name: str, depth: int, decay: float) -> float:
    """`layer_scale` of a model whose encoder is its backbone; 1 for everything else."""
    if not name.startswith(BACKBONE):
        return 1.0
    return layer_scale(name.removeprefix(BACKBONE), depth, decay)


def last_blocks(depth: int, blocks: float) -> Callable[[str], bool]:
    """The parameters trained by partial fine-tuning (paper section 4.3, figure 9).

    Args:
      depth: blocks of the encoder.
      blocks: number of last blocks to train; 0.5 is the MLP of the last block and its norm. The
        final norm and the head are always trained.

    Returns:
      Function from a parameter's name to whether it is trained.
    """
    whole = {f"blocks_{i}" for i in range(depth - int(blocks), depth)}

    def trainable(name: str) -> bool:
        top, *rest = name.split("/")
        if blocks == 0.5 and top == f"blocks_{depth - 1}":
            return rest[0] in ("norm2", "mlp")
        return top in whole or top in ("norm", "fc_norm", "head")

    return trainable
