"""Partial fine-tuning: number of last blocks trained (paper figure 9).

    launch/local.sh --config=configs/ablations/partial.py:4 --config.init_from=runs/vit_l_ablation
    python -m mae_jax.tools.study --study=configs/ablations/partial.py --stages=finetune

| blocks     | 0.5  | 1    | 2    | 4    | 6    | 12   | 18   | 24   |
|------------|------|------|------|------|------|------|------|------|
| MAE        | 79.1 | 81.0 | 83.1 | 84.2 | 84.4 | 84.6 | 84.7 | 84.9 |
| MoCo v3    |      | 79.9 | 80.8 | 81.6 | 81.9 | 83.2 | 83.8 | 84.1 |

Half a block is the MLP of the last one. No block is linear probing (73.5, MoCo v3 77.6), all 24
blocks are fine-tuning.

Hardware: see configs/partial/vit_l.py.
Cost (arithmetic): one pre-training, 1.28e20 FLOP, and up to 2.4e19 for each row.
Expect: the figures above, ViT-L/16 on ImageNet-1K, 800 epochs of raw pixels.
"""

import ml_collections

from configs.ablations import rows
from configs.partial import vit_l

KEY = "trainable_blocks"
RECIPES = {"finetune": "configs/partial/vit_l.py"}
ROWS = {str(x): {KEY: x} for x in (0.5, 1, 2, 4, 6, 12, 18, 24)}
PAPER = {"finetune": dict(zip(ROWS, (79.1, 81.0, 83.1, 84.2, 84.4, 84.6, 84.7, 84.9), strict=True))}


def get_config(row: str = "4") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config(), rows.choose(ROWS, row))
