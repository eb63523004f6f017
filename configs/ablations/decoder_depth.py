"""Number of decoder blocks (paper table 1a).

    launch/local.sh --config=configs/ablations/decoder_depth.py:8
    python -m mae_jax.tools.study --study=configs/ablations/decoder_depth.py

| blocks       | 1    | 2    | 4    | 8    | 12   |
|--------------|------|------|------|------|------|
| fine-tuned   | 84.8 | 84.9 | 84.9 | 84.9 | 84.4 |
| linear probe | 65.5 | 70.0 | 71.9 | 73.5 | 73.3 |

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs with 8 blocks are 1.28e20 FLOP; with 1 block 0.78, with 12 1.13 times
as much.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

KEY = "model.decoder_depth"
ROWS = {str(x): {KEY: x} for x in (1, 2, 4, 8, 12)}
PAPER = {
    "finetune": {"1": 84.8, "2": 84.9, "4": 84.9, "8": 84.9, "12": 84.4},
    "linprobe": {"1": 65.5, "2": 70.0, "4": 71.9, "8": 73.5, "12": 73.3},
}


def get_config(row: str = "8") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
