"""Linear probing on your own labeled images: only a linear layer on frozen features is trained.

    launch/local.sh --config=configs/linprobe/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

As configs/finetune/folder.py, with the protocol of configs/linprobe/vit_b.py (paper table 10).

Hardware: anything; almost only forward passes.
Cost: less than configs/finetune/folder.py: the encoder is frozen.
Expect: not measured yet.
"""

import ml_collections

from configs import common
from configs.linprobe import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick"."""
    common.check_setting(setting, "full", "quick")
    config = vit_b.get_config()
    common.as_pretrained(config)
    common.by_images(config)
    config.init_from = "runs/folder" if setting == "full" else "runs/folder_quick"
    config.model.num_classes = 0
    config.optim.base_lr = 1.0  # small batches: 0.1 of the paper is for updates of 16384 images
    config.data.source = "folder"
    config.checkpoint.keep_best = "eval/top1"  # RUN:best
    config.log_every = 10
    if setting == "quick":
        config.epochs = 0.0
        config.steps = 300
        config.batch_size = 64
        config.head.batch_norm_group = 64
        config.optim.warmup_epochs = 0.5
    return config
