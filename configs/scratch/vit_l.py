"""Supervised training of ViT-L/16 from scratch on ImageNet-1K (paper A.2, table 11).

    launch/local.sh --config=configs/scratch/vit_l.py

Like configs/scratch/vit_b.py, with drop path 0.2 and 200 epochs.

Hardware: see configs/scratch/vit_b.py.
Cost (arithmetic, not measured: 369.3 GFLOP per image): about 27 H100-hours at peak.
Expect: top-1 82.6 % with averaged weights, 81.5 % without.
"""

import ml_collections

from configs.scratch import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.size = "L"
    config.model.patch_size = (16, 16)
    config.epochs = 200.0
    config.model.drop_path = 0.2
    return config
