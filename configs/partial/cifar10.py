"""Partial fine-tuning on CIFAR-10: the last block, final norm and head.

    launch/local.sh --config=configs/partial/cifar10.py

    launch/local.sh --config=configs/partial/cifar10.py:laptop    after configs/cifar10.py:laptop

Like configs/finetune/cifar10.py; --config.trainable_blocks=0.5 for only the MLP half of the block.

Data: see configs/cifar10.py; the 5,000 held-out images are the same.
Hardware: anything.
Cost: laptop: 19 minutes on two CPU cores (measured next to two other jobs: 120 to 145
images/s). The full setting was not run.
Expect: laptop: top-1 60.0 % of the held-out images (measured, seed 0).
"""

import ml_collections

from configs.finetune import cifar10


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "laptop", as in configs/cifar10.py."""
    config = cifar10.get_config(setting)
    config.trainable = "last"
    config.trainable_blocks = 1.0
    return config
