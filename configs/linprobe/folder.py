"""Linear probing on your own labeled images: only a linear layer on frozen features is trained.

    launch/local.sh --config=configs/linprobe/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

As configs/finetune/folder.py, with the protocol of configs/linprobe/vit_b.py (paper table 10).

Hardware: anything; almost only forward passes.
Cost: less than configs/finetune/folder.py: the encoder is frozen.
Expect: not measured yet.
"""

import ml_collections

from configs import common
from configs.linprobe import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick"."""
    config = vit_b.get_config()
    common.own_labels(config, setting)
    # A LARS step is relative to the size of the weights, whatever the batch, and there are fewer
    # steps than on ImageNet: so this is higher than the paper's 0.1, which is for 16384 images.
    config.optim.base_lr = 6.4
    if setting == "quick":
        config.optim.base_lr = 102.4
        config.head.batch_norm_group = 64
    return config
