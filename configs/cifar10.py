"""A small masked autoencoder on CIFAR-10: 32-pixel images, 4-pixel patches.

    launch/local.sh --config=configs/cifar10.py

Data: CIFAR-10 prepared by TFDS (50,000 images; if missing, the message says how to get it),
or a folder of images with --config.data.source=folder --config.data.root=DIR, from which 5,000 are
held out unless it has val/.

A setting for two CPU cores, with 4 blocks, width 128, and 24 epochs:

    launch/local.sh --config=configs/cifar10.py:laptop

Next: configs/linprobe/cifar10.py, finetune, partial, scratch, knn.

Hardware: anything; the default 200 epochs need a GPU; a few epochs take minutes on CPU.
Cost (measured): 170 to 190 images/s on two CPU cores, about 4 minutes for 45,000 images.
Expect: held-out loss 2.39 before the first step; after --config.epochs=6
--config.optim.warmup_epochs=0.5 it was 0.54 (predicting each patch's mean: 0.98).
"""

import ml_collections

from configs import vit_l


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "laptop"."""
    if setting not in ("full", "laptop"):
        raise ValueError(f"unknown setting {setting!r}: full or laptop")
    config = vit_l.get_config()
    config.epochs = 200.0
    config.batch_size = 256
    config.model.size = "Ti"
    config.model.image_size = (32, 32)
    config.model.patch_size = (4, 4)
    config.model.depth = 6
    config.model.decoder_embed_dim = 128
    config.model.decoder_depth = 2
    config.model.decoder_num_heads = 4
    config.optim.base_lr = 1e-3
    config.optim.warmup_epochs = 10.0
    config.data.name = "cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.holdout = 5000
    config.checkpoint.keep_every = 0
    config.eval_every = 500
    config.eval_images = 1024
    config.figure_every = 500
    config.figure_images = 12
    if setting == "laptop":
        config.epochs = 24.0
        config.model.embed_dim = 128
        config.model.depth = 4
        config.model.num_heads = 4
        config.model.decoder_embed_dim = 96
        config.optim.base_lr = 2e-3
        config.optim.warmup_epochs = 2.0
        config.checkpoint.every_steps = 500
    return config
