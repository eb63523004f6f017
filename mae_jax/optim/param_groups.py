"""Parameter groups by name: weight decay, layer-wise learning rates, partial fine-tuning."""

import re
from collections.abc import Callable

from mae_jax.runtime.errors import UsageError

TOKENS_AND_POSITIONS = ("cls_token", "pos_embed")


def decays(name: str, ndim: int, exempt: tuple[str, ...] = ()) -> bool:
    """Whether weight decay applies: not to biases and norms, nor to the names in `exempt`.

    In pre-training nothing is exempt: class and mask tokens have three axes and are decayed
    (official `add_weight_decay`). In fine-tuning, TOKENS_AND_POSITIONS are exempt (official
    `param_groups_lrd`).
    """
    return ndim > 1 and not name.endswith("/bias") and name not in exempt


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
    if top in ("norm", "fc_norm", "head"):
        return depth + 1
    raise UsageError(f"no layer is known for the parameter {name}: set optim.layer_decay=1")


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Factor on the learning rate and weight decay of a parameter: decay ** (layers above it)."""
    return decay ** (depth + 1 - layer_id(name, depth))


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
