"""Partial fine-tuning on your own labeled images: the last block, final norm and head.

    launch/local.sh --config=configs/partial/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

As configs/finetune/folder.py; --config.trainable_blocks=N for more blocks.

Hardware: anything.
Cost: less than configs/finetune/folder.py: frozen blocks have no backward pass. `quick`: four
minutes of CPU time (measured; half an hour on a very busy machine).
Expect: `quick` after configs/folder.py:quick on 3,068 photos of clothes (10 classes): held-out
top-1 30.5 % (one seed).
"""

import ml_collections

from configs import common
from configs.finetune import folder


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick", as in configs/finetune/folder.py."""
    common.check_setting(setting, "full", "quick")
    config = folder.get_config(setting)
    config.trainable = "last"
    config.trainable_blocks = 1.0
    return config
