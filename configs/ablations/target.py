"""Prediction targets (paper table 1d).

    launch/local.sh --config=configs/ablations/target.py:pixel
    python -m mae_jax.tools.study --study=configs/ablations/target.py

| target       | pixel | norm | pca  | tokens |
|--------------|-------|------|------|--------|
| fine-tuned   | 84.9  | 85.4 | 84.6 | 85.3   |
| linear probe | 73.5  | 73.9 | 72.3 | 71.6   |

"norm" normalizes each patch, "pca" predicts the 96 largest coefficients, and "tokens" the codes of
a discrete VAE. Set its path with --config.target.tokenizer= (in a study:
--pretrain.target.tokenizer=): a run of configs/tokenizer.py, or DALL-E's file.

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs are 1.28e20 FLOP; with tokens, plus those of the tokenizer.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

_RAW = {"target.normalize": False}
ROWS = {
    "pixel": {"target.kind": "pixel"} | _RAW,
    "norm": {"target.kind": "pixel", "target.normalize": True},
    "pca": {"target.kind": "pca"} | _RAW,
    "tokens": {"target.kind": "tokens"} | _RAW,
}
PAPER = {
    "finetune": {"pixel": 84.9, "norm": 85.4, "pca": 84.6, "tokens": 85.3},
    "linprobe": {"pixel": 73.5, "norm": 73.9, "pca": 72.3, "tokens": 71.6},
}


def get_config(row: str = "pixel") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
