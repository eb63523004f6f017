"""Supervised training on CIFAR-10 of the network of configs/finetune/cifar10.py, from scratch.

    launch/local.sh --config=configs/scratch/cifar10.py

    launch/local.sh --config=configs/scratch/cifar10.py:laptop    after configs/cifar10.py:laptop

Everything else is the same, for comparison, except for layer-wise decay, which only makes sense for
pre-trained layers, and the initialization of the head.

Data: see configs/cifar10.py; the 5,000 held-out images are the same.
Hardware: anything.
Cost: see configs/finetune/cifar10.py.
Expect: laptop: top-1 53.8 % of the held-out images, 12.4 points below fine-tuning (measured, seed
0).
"""

import ml_collections

from configs.finetune import cifar10


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "laptop", as in configs/cifar10.py."""
    config = cifar10.get_config(setting)
    config.init_from = ""
    config.head.init_std = 0.02
    config.optim.layer_decay = 1.0
    return config
