"""Model size (paper tables 3 and 12, figure 8).

    launch/local.sh --config=configs/ablations/model_size.py:B
    python -m mae_jax.tools.study --study=configs/ablations/model_size.py

| model        | B    | L    | H    |
|--------------|------|------|------|
| fine-tuned   | 83.6 | 85.9 | 86.9 |
| linear probe | 68.0 | 75.8 | 76.6 |

1600 epochs, normalized pixels.

Hardware: see configs/vit_l.py.
Cost (arithmetic): 1.2e20 (B), 2.55e20 (L), 5.97e20 FLOP (H) of pre-training.
Expect: the figures above, ImageNet-1K, each size probed and fine-tuned by its own recipe.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

_LONG = {"epochs": 1600.0, "target.normalize": True}
ROWS = {
    "B": {"model.size": "B"} | _LONG,
    "L": {"model.size": "L"} | _LONG,
    "H": {"model.size": "H", "model.patch_size": (14, 14)} | _LONG,
}
RECIPES = {
    stage: {size: f"configs/{stage}/vit_{size.lower()}.py" for size in ROWS}
    for stage in ("linprobe", "finetune")
}
PAPER = {
    "finetune": {"B": 83.6, "L": 85.9, "H": 86.9},
    "linprobe": {"B": 68.0, "L": 75.8, "H": 76.6},
}


def get_config(row: str = "B") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
