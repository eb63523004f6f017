"""ViT-B/16 pre-training on ImageNet-1K (paper tables 3 and 8).

    launch/local.sh --config=configs/vit_b.py

Same as configs/vit_l.py, which describes the data and `:ablation`.

Hardware: see configs/vit_l.py.
Cost (arithmetic, not measured: 58.7 GFLOP per image for training): 1600 epochs are 1.2e20 FLOP,
34 H100-hours at peak, so about 70 at 50 % utilization; each such GPU then needs about 8,000
decoded images per second.
Expect: loss 1.80 before the first step; fine-tuned 83.6 %, linear probe 68.0 % (tables 3 and 12).
"""

import ml_collections

from configs import vit_l


def get_config(setting: str = "released") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "released" or "ablation"."""
    config = vit_l.get_config(setting)
    config.model.size = "B"
    return config
