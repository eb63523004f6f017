"""ViT-H/14 pre-training on ImageNet-1K (paper tables 3 and 8).

    launch/local.sh --config=configs/vit_h.py

Same as configs/vit_l.py, which describes the data and `:ablation`.

Hardware: see configs/vit_l.py; --config.mesh.fsdp=N splits parameters and optimizer state (7.9 GB
in float32) over N devices.
Cost (arithmetic, not measured: 291.4 GFLOP per image for training): 1600 epochs are 5.97e20 FLOP,
168 H100-hours at peak, so about 340 at 50 % utilization.
Expect: loss 1.93 before the first step; fine-tuned 86.9 %, linear probe 76.6 % (tables 3 and 12).
"""

import ml_collections

from configs import vit_l


def get_config(setting: str = "released") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "released" or "ablation"."""
    config = vit_l.get_config(setting)
    config.model.size = "H"
    config.model.patch_size = (14, 14)
    return config
