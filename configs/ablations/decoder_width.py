"""Decoder width (paper table 1b).

    launch/local.sh --config=configs/ablations/decoder_width.py:512
    python -m mae_jax.tools.study --study=configs/ablations/decoder_width.py

| width        | 128  | 256  | 512  | 768  | 1024 |
|--------------|------|------|------|------|------|
| fine-tuned   | 84.9 | 84.8 | 84.9 | 84.4 | 84.3 |
| linear probe | 69.1 | 71.3 | 73.5 | 73.1 | 73.1 |

The paper does not state the number of heads for other widths: all use 16, as in the official code.

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs at width 512 are 1.28e20 FLOP; at 128 0.76, at 1024 1.74 times as
much.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

KEY = "model.decoder_embed_dim"
ROWS = {str(x): {KEY: x} for x in (128, 256, 512, 768, 1024)}
PAPER = {
    "finetune": {"128": 84.9, "256": 84.8, "512": 84.9, "768": 84.4, "1024": 84.3},
    "linprobe": {"128": 69.1, "256": 71.3, "512": 73.5, "768": 73.1, "1024": 73.1},
}


def get_config(row: str = "512") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
