"""Fine-tuning on CIFAR-10 of the encoder of configs/cifar10.py.

    launch/local.sh --config=configs/finetune/cifar10.py

    launch/local.sh --config=configs/finetune/cifar10.py:laptop    after configs/cifar10.py:laptop

The laptop setting takes three epochs and therefore omits RandAugment, mixing and erasing.

Data: see configs/cifar10.py; the 5,000 held-out images are the same.
Hardware: anything.
Cost: laptop: half an hour on two CPU cores (measured next to two other jobs: 75 to 95
images/s). The full setting was not run.
Expect: laptop: top-1 66.2 % of the held-out images (measured, seed 0).
"""

import ml_collections

from configs import cifar10
from configs.finetune import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "laptop", as in configs/cifar10.py."""
    config = vit_b.get_config()
    vit_b.use(config, cifar10.get_config(setting))
    config.init_from = "runs/cifar10" if setting == "full" else "runs/cifar10_laptop"
    config.batch_size = 256
    config.model.num_classes = 10
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.75
    config.data.crop_scale = (0.2, 1.0)  # 0.08 of a 32-pixel image is a blur
    config.eval_every = 500
    config.figure_every = 500
    if setting == "laptop":
        config.epochs = 3.0
        config.optim.warmup_epochs = 0.3
        config.data.crop_scale = (0.5, 1.0)
        config.data.randaug_magnitude = 0.0
        config.erase_prob = 0.0
        config.mix.mixup = 0.0
        config.mix.cutmix = 0.0
        config.checkpoint.every_steps = 250
        config.eval_every = 176
    return config
