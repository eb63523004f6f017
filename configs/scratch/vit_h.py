"""Supervised training of ViT-H/14 from scratch on ImageNet-1K (paper A.2, table 11).

    launch/local.sh --config=configs/scratch/vit_h.py

Like configs/scratch/vit_b.py, with drop path 0.2 and 200 epochs.

Hardware: see configs/scratch/vit_b.py.
Cost (arithmetic, not measured: 1003.8 GFLOP per image): about 72 H100-hours at peak.
Expect: top-1 83.1 % with averaged weights, 80.9 % without.
"""

import ml_collections

from configs.scratch import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.size = "H"
    config.model.patch_size = (14, 14)
    config.epochs = 200.0
    config.model.drop_path = 0.2
    return config
