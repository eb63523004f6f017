"""Fine-tuning of the demo's encoder on the same drawn images, now with their labels (12 figures).

    launch/local.sh --config=configs/demo.py             # first: the encoder, in runs/demo
    launch/local.sh --config=configs/finetune/demo.py

Then compare it with the same network from scratch, and with probes:

    launch/local.sh --config=configs/scratch/demo.py
    launch/local.sh --config=configs/linprobe/demo.py
    launch/local.sh --config=configs/knn/demo.py
    python -m mae_jax.tools.compare runs/finetune/demo runs/scratch/demo runs/linprobe/demo

Hardware: anything; two CPU cores are enough.
Cost: 153 images/s on two quiet CPU cores (measured, `bench step`), so about two and a half minutes
with evaluations; 8 minutes next to three other jobs.
Expect: held-out top-1 30.8 % (measured, from five of the demo's eight epochs; guessing 8.3 %).
configs/finetune/cifar10.py:laptop shows the benefit of pre-training on photos.
"""

import ml_collections

from configs import demo
from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    vit_b.use(config, demo.get_config())
    config.init_from = "runs/demo"
    config.epochs = 1.0
    config.batch_size = 64
    config.model.num_classes = 12
    config.model.drop_path = 0.0
    config.optim.base_lr = 6e-3
    config.optim.warmup_epochs = 0.1
    config.optim.layer_decay = 0.75
    config.data.num_train = 16_000
    config.data.crop_scale = (0.5, 1.0)
    # The run is too short to learn from mixed or distorted images.
    config.data.randaug_magnitude = 0.0
    config.erase_prob = 0.0
    config.mix.mixup = 0.0
    config.mix.cutmix = 0.0
    config.log_every = 25
    config.eval_every = 50
    config.figure_every = 250
    return config
