"""Mask tokens in the encoder (paper table 1c).

    launch/local.sh --config=configs/ablations/mask_token.py:with
    python -m mae_jax.tools.study --study=configs/ablations/mask_token.py

| encoder      | with mask tokens | without |
|--------------|------------------|---------|
| fine-tuned   | 84.2             | 84.9    |
| linear probe | 59.6             | 73.5    |
| FLOPs        | 3.3              | 1       |

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs without are 1.28e20 FLOP; with mask tokens 3.23 times as much.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

ROWS = {
    "with": {"model.encoder_mask_tokens": True},
    "without": {"model.encoder_mask_tokens": False},
}
PAPER = {
    "finetune": {"with": 84.2, "without": 84.9},
    "linprobe": {"with": 59.6, "without": 73.5},
}


def get_config(row: str = "with") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
