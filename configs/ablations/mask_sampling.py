"""Mask sampling strategies (paper table 1f).

    launch/local.sh --config=configs/ablations/mask_sampling.py:block-0.5
    python -m mae_jax.tools.study --study=configs/ablations/mask_sampling.py

| sampling     | random-0.75 | block-0.5 | block-0.75 | grid-0.75 |
|--------------|-------------|-----------|------------|-----------|
| fine-tuned   | 84.9        | 83.9      | 82.8       | 84.0      |
| linear probe | 73.5        | 72.3      | 63.9       | 66.0      |

Hardware: see configs/vit_l.py.
Cost (arithmetic): 800 epochs at 75 % are 1.28e20 FLOP; at 50 % 1.73 times as much.
Expect: the figures above, ViT-L/16 on ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

ROWS = {
    f"{kind}-{ratio}": {"mask.kind": kind, "mask.ratio": ratio}
    for kind, ratio in (("random", 0.75), ("block", 0.5), ("block", 0.75), ("grid", 0.75))
}
PAPER = {
    "finetune": dict(zip(ROWS, (84.9, 83.9, 82.8, 84.0), strict=True)),
    "linprobe": dict(zip(ROWS, (73.5, 72.3, 63.9, 66.0), strict=True)),
}


def get_config(row: str = "block-0.5") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
