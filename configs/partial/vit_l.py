"""Partial fine-tuning of ViT-L/16 on ImageNet-1K (paper section 4.3, figure 9).

    launch/local.sh --config=configs/partial/vit_l.py --config.trainable_blocks=4 \
        --config.init_from=runs/vit_l_ablation

Trains the last blocks, the final norm, and the head; everything below is frozen and needs neither a
backward pass nor optimizer state. 0.5 trains only the MLP half of the last block; 0 is linear
probing (configs/linprobe/vit_l.py). The paper uses the recipe of table 9 and chooses the best of
50, 100 and 200 epochs; fewer blocks need more epochs.

Hardware: see configs/finetune/vit_b.py.
Cost: between 123 (forward only) and 369 GFLOP per image (arithmetic, not measured).
Expect, for the 800-epoch encoder of raw pixels (configs/vit_l.py:ablation), top-1 by blocks: 0.5:
79.1, 1: 81.0, 2: 83.1, 4: 84.2, 6: 84.4, 12: 84.6, 18: 84.7, 24: 84.9.
"""

import ml_collections

from configs.finetune import vit_l


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_l.get_config("ablation")
    config.trainable = "last"
    config.trainable_blocks = 4.0
    return config
