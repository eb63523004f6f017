"""Length of pre-training (paper figure 7).

    launch/local.sh --config=configs/ablations/epochs.py:400
    python -m mae_jax.tools.study --study=configs/ablations/epochs.py

| epochs       | 100  | 200  | 400  | 800  | 1600 |
|--------------|------|------|------|------|------|
| fine-tuned   | 82.3 | 83.3 | 84.3 | 84.9 | 85.1 |
| linear probe | 57.3 | 64.4 | 69.7 | 73.5 | 75.1 |

Hardware: see configs/vit_l.py.
Cost (arithmetic): 100 epochs are 1.6e19 FLOP, 1600 2.55e20.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

KEY = "epochs"
ROWS = {str(x): {KEY: float(x)} for x in (100, 200, 400, 800, 1600)}
PAPER = {
    "finetune": {"100": 82.3, "200": 83.3, "400": 84.3, "800": 84.9, "1600": 85.1},
    "linprobe": {"100": 57.3, "200": 64.4, "400": 69.7, "800": 73.5, "1600": 75.1},
}


def get_config(row: str = "400") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
