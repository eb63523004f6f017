"""Supervised training from scratch on your own labeled images: what pre-training is worth.

    launch/local.sh --config=configs/scratch/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

The network of configs/finetune/folder.py and its data; `init_from` gives only the model's sizes and
pixel statistics, no weights. Three times as many epochs as fine-tuning, as nothing is learned yet.

Hardware: one GPU; `quick` runs on two CPU cores.
Cost: as configs/finetune/folder.py for the same number of updates.
Expect: accuracy not measured: only 30 of the 300 updates of `quick` were run, which reach the share
of the largest class.
"""

import ml_collections

from configs import common
from configs.finetune import folder


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick", as in configs/finetune/folder.py."""
    common.check_setting(setting, "full", "quick")
    config = folder.get_config(setting)
    config.init_weights = False
    config.head.init_std = 0.02
    config.optim.layer_decay = 1.0
    return config
