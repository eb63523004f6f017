"""Linear probing on CIFAR-10 of the encoder of configs/cifar10.py.

    launch/local.sh --config=configs/linprobe/cifar10.py

    launch/local.sh --config=configs/linprobe/cifar10.py:laptop    after configs/cifar10.py:laptop

--config.init_from= probes an untrained encoder: the baseline to beat.

Data: see configs/cifar10.py; the 5,000 held-out images are the same.
Hardware: anything.
Cost: laptop: five and a half minutes on two CPU cores, 550 images/s (measured, next to another
run). The full setting was not run.
Expect: laptop: top-1 45.4 % of the held-out images; 28.1 % with an untrained encoder (measured,
seed 0).
"""

import ml_collections

from configs.finetune import cifar10
from configs.linprobe import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "laptop", as in configs/cifar10.py."""
    config, fine = vit_b.get_config(), cifar10.get_config(setting)
    config.model, config.data, config.checkpoint = fine.model, fine.data, fine.checkpoint
    config.model.drop_path = 0.0
    config.init_from = fine.init_from
    config.batch_size = 1024
    config.head.batch_norm_group = 0
    config.data.augment = "crop_once"
    config.data.randaug_magnitude = 0.0
    config.eval_every = 125
    config.figure_every = 500
    if setting == "laptop":
        config.epochs = 3.0
        config.batch_size = 512
        config.optim.warmup_epochs = 0.3
        # The learning rate of the paper's batch of 16384: a LARS step is relative to the size of
        # the weights, and there are few steps.
        config.optim.base_lr = 3.2
        config.eval_every = 88
    return config
