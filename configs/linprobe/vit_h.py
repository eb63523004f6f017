"""Linear probing of ViT-H/14 on ImageNet-1K (paper tables 10 and 12).

    launch/local.sh --config=configs/linprobe/vit_h.py --config.init_from=runs/vit_h

Like configs/linprobe/vit_b.py, with 50 epochs, which the official code finds enough for L and H.

Hardware: see configs/linprobe/vit_b.py.
Cost (arithmetic, not measured: 335 GFLOP per image): about 6.0 H100-hours at peak.
Expect: top-1 76.6 % (official code 77.2).
"""

import ml_collections

from configs.linprobe import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.size = "H"
    config.model.patch_size = (14, 14)
    config.init_from = "runs/vit_h"
    config.epochs = 50.0
    return config
