"""End-to-end fine-tuning of ViT-H/14 on ImageNet-1K (official recipe; paper tables 3 and 9).

    launch/local.sh --config=configs/finetune/vit_h.py --config.init_from=runs/vit_h

Like configs/finetune/vit_l.py, with drop path 0.3 and groups of 16 for mixup (the official batch of
one GPU).

Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 1003.8 GFLOP per image): 6.43e19 FLOP, 18 H100-hours at peak. The
official code took 13 h 9 min on 64 V100.
Expect: top-1 86.9 %.
"""

import ml_collections

from configs.finetune import vit_l


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_l.get_config()
    config.model.size = "H"
    config.model.patch_size = (14, 14)
    config.init_from = "runs/vit_h"
    config.model.drop_path = 0.3
    config.mix.group = 16
    return config
