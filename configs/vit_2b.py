"""ViT-2B/14 pre-training on ImageNet-1K: beyond the paper, never trained, to show what fits.

    launch/local.sh --config=configs/vit_2b.py

The encoder of Singh et al. (2303.13496), width 2560, 24 blocks, 32 heads, with the recipe of
configs/vit_h.py. It has not been trained with this code, and the learning rate may not suit it.
To find out what it needs on hardware that you do not have:

    python -m mae_jax.tools.bench compile --config=configs/vit_2b.py --topology=v5e:8x8

Hardware: parameters, gradients and optimizer state, 29 GB in float32, are split over all devices;
64 devices of 16 GB hold it at this batch (docs/performance.md).
Cost (arithmetic, not measured: 784.6 GFLOP per image for training): 1600 epochs are 1.61e21 FLOP,
452 H100-hours at peak, so about 900 at 50 % utilization.
Expect: loss 1.93 before the first step; no published result with this recipe.
"""

import ml_collections

from configs import vit_h


def get_config(setting: str = "released") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "released" or "ablation"."""
    config = vit_h.get_config(setting)
    config.model.size = "2B"
    config.model.remat = "blocks"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
