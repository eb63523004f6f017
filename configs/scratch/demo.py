"""The network of configs/finetune/demo.py from scratch: the baseline without pre-training.

    launch/local.sh --config=configs/scratch/demo.py

configs/finetune/demo.py lists all the commands that belong together.

Hardware: anything; two CPU cores are enough.
Cost: see configs/finetune/demo.py.
Expect: held-out top-1 8.0 %, no better than guessing (measured with earlier, cluttered images; with
today's it was 8.2 % after 150 of 250 updates).
"""

import ml_collections

from configs.finetune import demo


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = demo.get_config()
    config.init_from = ""
    config.head.init_std = 0.02
    config.optim.layer_decay = 1.0
    return config
