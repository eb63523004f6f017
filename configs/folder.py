"""Pre-training on your own images: any folder, with or without labels.

    launch/local.sh --config=configs/folder.py --config.data.root=DIR
    launch/local.sh --config=configs/folder.py:quick --config.data.root=DIR

docs/getting_started.md walks through it; docs/data.md describes the supported folders. Epochs,
batch and warm-up follow from the number of images. The target is raw pixels, which look best in
figures; for features the paper found --config.target.normalize=True better.

`quick` is a small model at 96 pixels for a first look: 600 updates, whatever the number of images.

Hardware: one GPU; `quick` runs on two CPU cores.
Cost (two CPU cores, measured): `quick` 105 images/s, so six minutes for its 600 updates of 64. The
full recipe needs a GPU: 14 to 18 images/s on two CPU cores.
Expect: `quick` on 3,068 photos of clothes: held-out loss 1.86, 1.05, 0.51, 0.44 after 0, 30, 240,
600 updates (baseline 0.39): colors and outlines, no texture.
"""

import ml_collections

from configs import common, vit_l


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick"."""
    common.check_setting(setting, "full", "quick")
    config = vit_l.get_config()
    common.by_images(config)
    config.model.size = "Ti"
    config.model.decoder_embed_dim = 192
    config.model.decoder_depth = 4
    config.model.decoder_num_heads = 6
    config.target.normalize = False
    config.optim.base_lr = 2e-3
    config.data.source = "folder"
    config.checkpoint.keep_every = 0
    config.log_every = 10
    config.eval_images = 512
    if setting == "quick":
        config.epochs = 0.0
        config.steps = 600
        config.batch_size = 64
        config.model.image_size = (96, 96)
        config.model.patch_size = (8, 8)
        config.model.embed_dim = 128
        config.model.depth = 6
        config.model.num_heads = 4
        config.model.decoder_embed_dim = 96
        config.model.decoder_depth = 2
        config.model.decoder_num_heads = 4
        config.optim.base_lr = 6e-3
        config.optim.warmup_epochs = 1.0
        config.data.crop_scale = (0.35, 1.0)
    return config
