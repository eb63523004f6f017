"""Pre-training on your own images: any folder, with or without labels.

    launch/local.sh --config=configs/folder.py --config.data.root=DIR

docs/data.md describes the supported folders. The target is raw pixels, for faithful figures; for
features the paper found --config.target.normalize=True better.

Hardware: a GPU for thousands of images; a few hundred steps can be tried on CPU.
Cost (measured): 14 to 18 images/s on two CPU cores.
Expect: the loss falls below `baseline_loss` (each patch's own mean) only after thousands of steps.
On 3,068 photos of clothes the held-out loss was 1.66, 0.87, 0.66, 0.58 after 0, 100, 200, 320 steps
(baseline 0.38), with --config.steps=320 --config.batch_size=32 --config.optim.base_lr=4e-3
--config.optim.warmup_epochs=0.3.
"""

import ml_collections

from configs import vit_l


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_l.get_config()
    config.epochs = 400.0
    config.batch_size = 64
    config.model.size = "Ti"
    config.model.decoder_embed_dim = 192
    config.model.decoder_depth = 4
    config.model.decoder_num_heads = 6
    config.target.normalize = False
    config.optim.base_lr = 2e-3
    config.optim.warmup_epochs = 10.0
    config.data.source = "folder"
    config.data.holdout = 64
    config.checkpoint.keep_every = 0
    config.log_every = 10
    config.eval_every = 250
    config.eval_images = 512
    config.figure_every = 250
    return config
