"""Pixels or tokens as target, by model size (paper table 7).

    launch/local.sh --config=configs/ablations/pixels_or_tokens.py:L-norm
    python -m mae_jax.tools.study --study=configs/ablations/pixels_or_tokens.py

| fine-tuned | pixel | norm | tokens |
|------------|-------|------|--------|
| B          | 83.3  | 83.6 | 83.6   |
| L          | 85.1  | 85.9 | 85.7   |
| H          | 86.2  | 86.9 | 86.9   |

1600 epochs. The paper also reports COCO and ADE20K. Rows are named L-pixel and so on; tokens need
--config.target.tokenizer=, as in configs/ablations/target.py.

Hardware: see configs/vit_l.py.
Cost (arithmetic): see configs/ablations/model_size.py, for each target.
Expect: the figures above, ImageNet-1K.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

_SIZES = {
    "B": {"model.size": "B"},
    "L": {"model.size": "L"},
    "H": {"model.size": "H", "model.patch_size": (14, 14)},
}
_TARGETS = {
    "pixel": {"target.kind": "pixel", "target.normalize": False},
    "norm": {"target.kind": "pixel", "target.normalize": True},
    "tokens": {"target.kind": "tokens", "target.normalize": False},
}
ROWS = {
    f"{size}-{target}": {"epochs": 1600.0} | _SIZES[size] | _TARGETS[target]
    for size in _SIZES
    for target in _TARGETS
}
RECIPES = {
    stage: {row: f"configs/{stage}/vit_{row[0].lower()}.py" for row in ROWS}
    for stage in ("linprobe", "finetune")
}
PAPER = {
    "finetune": dict(zip(ROWS, (83.3, 83.6, 83.6, 85.1, 85.9, 85.7, 86.2, 86.9, 86.9), strict=True))
}


def get_config(row: str = "L-norm") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
