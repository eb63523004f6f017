"""Linear probing of ViT-L/16 on ImageNet-1K (paper tables 10 and 12).

    launch/local.sh --config=configs/linprobe/vit_l.py --config.init_from=runs/vit_l

Like configs/linprobe/vit_b.py, with 50 epochs, which the official code finds enough for L and H.

Hardware: see configs/linprobe/vit_b.py.
Cost (arithmetic, not measured: 123 GFLOP per image): about 2.2 H100-hours at peak.
Expect: top-1 75.8 % (official code 76.0).
"""

import ml_collections

from configs.linprobe import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.size = "L"
    config.model.patch_size = (16, 16)
    config.init_from = "runs/vit_l"
    config.epochs = 50.0
    return config
