"""Augmentation of pre-training (paper table 1e).

    launch/local.sh --config=configs/ablations/augmentation.py:random
    python -m mae_jax.tools.study --study=configs/ablations/augmentation.py

| augmentation | none | fixed | random | jitter |
|--------------|------|-------|--------|--------|
| fine-tuned   | 84.0 | 84.7  | 84.9   | 84.3   |
| linear probe | 65.7 | 73.1  | 73.5   | 71.9   |

"none" is the center crop without flips, "fixed" a crop of fixed size, "random" a crop of random
size, and "jitter" adds random brightness, contrast, and saturation. The paper states neither the
geometry of the fixed crop (ours is in docs/data.md) nor the strength of the jitter (ours is 0.4).

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs are 1.28e20 FLOP.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

ROWS = {
    "none": {"data.augment": "none", "data.color_jitter": 0.0},
    "fixed": {"data.augment": "crop_fixed", "data.color_jitter": 0.0},
    "random": {"data.augment": "crop", "data.color_jitter": 0.0},
    "jitter": {"data.augment": "crop", "data.color_jitter": 0.4},
}
PAPER = {
    "finetune": {"none": 84.0, "fixed": 84.7, "random": 84.9, "jitter": 84.3},
    "linprobe": {"none": 65.7, "fixed": 73.1, "random": 73.5, "jitter": 71.9},
}


def get_config(row: str = "random") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
