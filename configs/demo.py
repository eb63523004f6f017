"""A tiny masked autoencoder on synthetic images: the first thing to run.

    launch/local.sh --config=configs/demo.py

Hardware: anything; two CPU cores are enough.
Cost: 331 s of CPU time (measured on a busy machine), so about three minutes on two quiet cores.
Expect: held-out loss from 1.5 to about 0.26 (measured; filling each patch with its own mean over
pixels and channels would cost 0.39). The figures in runs/demo/pictures recover colors and rough
shapes where three quarters are masked.
"""

import ml_collections

from configs import vit_l


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_l.get_config()
    config.epochs = 8.0
    config.batch_size = 16
    config.model.size = "Ti"
    config.model.image_size = (64, 64)
    config.model.patch_size = (8, 8)
    config.model.embed_dim = 128
    config.model.num_heads = 4
    config.model.depth = 4
    config.model.decoder_embed_dim = 96
    config.model.decoder_depth = 2
    config.model.decoder_num_heads = 4
    config.target.normalize = False
    config.optim.base_lr = 48e-3
    config.optim.warmup_epochs = 0.5
    config.data.source = "shapes"
    config.data.scenes = "plain"
    config.data.num_train = 8_000
    config.data.cache = "decoded"  # drawing an image takes a fifth as long as a step on it
    config.data.crop_scale = (0.5, 1.0)
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_every = 0
    config.log_every = 100
    config.eval_every = 500
    config.eval_images = 256
    config.figure_every = 500
    return config
