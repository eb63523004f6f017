"""Masking ratio (paper figure 5).

One row, named by its ratio, or all rows with linear probe and fine-tuning:

    launch/local.sh --config=configs/ablations/mask_ratio.py:0.5
    python -m mae_jax.tools.study --study=configs/ablations/mask_ratio.py

| ratio        | 0.1  | 0.2  | 0.3  | 0.4  | 0.5  | 0.6  | 0.7  | 0.75 | 0.8  | 0.9  |
|--------------|------|------|------|------|------|------|------|------|------|------|
| fine-tuned   | 83.2 | 83.4 | 83.4 | 84.7 | 84.9 | 85.0 | 84.9 | 84.9 | 84.5 | 83.0 |
| linear probe | 54.6 | 58.9 | 61.7 | 67.0 | 69.9 | 71.8 | 73.2 | 73.5 | 71.8 | 66.1 |

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs at 75 % are 1.28e20 FLOP; at 10 % 2.9, at 90 % 0.56 times as much.
Expect: the figures above, ViT-L/16 on ImageNet-1K; docs/ablations.md has a small study.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

KEY = "mask.ratio"
ROWS = {str(x): {KEY: x} for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)}
PAPER = {
    "finetune": dict(
        zip(ROWS, (83.2, 83.4, 83.4, 84.7, 84.9, 85.0, 84.9, 84.9, 84.5, 83.0), strict=True)
    ),
    "linprobe": dict(
        zip(ROWS, (54.6, 58.9, 61.7, 67.0, 69.9, 71.8, 73.2, 73.5, 71.8, 66.1), strict=True)
    ),
}


def get_config(row: str = "0.75") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
