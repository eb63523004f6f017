"""Linear probing on your own labeled images: only a linear layer on frozen features is trained.

    launch/local.sh --config=configs/linprobe/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

As configs/finetune/folder.py, with the protocol of configs/linprobe/vit_b.py (paper table 10) but
for AdamW instead of LARS, which needs thousands of updates.

Hardware: anything; almost only forward passes.
Cost: less than configs/finetune/folder.py: the encoder is frozen. `quick`: four minutes of CPU time
(measured; 13 minutes on a busy machine).
Expect: `quick` after configs/folder.py:quick on 3,068 photos of clothes (10 classes): held-out
top-1 42.2 % at step 285, the best of 300 (one seed); LARS stayed at the share of the largest class.
"""

import ml_collections

from configs import common
from configs.linprobe import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick"."""
    common.check_setting(setting, "full", "quick")
    config = vit_b.get_config()
    common.own_labels(config, setting)
    # LARS takes steps of a fixed fraction of the weights: with a few hundred steps it stays at the
    # initial weights, or diverges with a higher learning rate.
    config.optim.name = "adamw"
    config.optim.base_lr = 0.01
    if setting == "quick":
        config.optim.base_lr = 0.12
        config.head.batch_norm_group = 64
    return config
