"""Detection and instance segmentation on your own images.

    launch/local.sh --config=configs/detection/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

DIR contains `images/` and `annotations.json` in COCO's format (docs/detection.md). The encoder,
its sizes and the pixel statistics come from `init_from`, the classes from the annotations, and
epochs, batch and held-out images from the number of images. `quick` is a small detector at 192
pixels for a first look, for encoders of configs/folder.py:quick or `clothing-96`.

    launch/local.sh --config=configs/detection/folder.py:quick \
        --config.init_from=runs/folder_quick --config.data.root=DIR

Hardware: one GPU; `quick` runs on two CPU cores.
Cost: not measured; by its arithmetic, a step of `quick` takes a few seconds on two CPU cores.
Expect: not measured.
"""

import ml_collections

from configs import common
from configs.detection import vitdet_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick"."""
    common.check_setting(setting, "full", "quick")
    config = vitdet_b.get_config()
    common.as_pretrained(config)
    common.by_images(config)
    config.steps = 0
    config.model.image_size = (1024, 1024)
    config.detector.pretrain_size = (0, 0)
    config.init_from = "runs/folder" if setting == "full" else "runs/folder_quick"
    config.data.eval_split = ""
    config.data.split = "train"
    config.optim.milestones = (8 / 9, 26 / 27)
    config.log_every = 10
    if setting == "quick":
        config.model.image_size = (192, 192)
        config.model.drop_path = 0.0
        config.detector.window = 8
        config.detector.width = 48
        config.detector.hidden_dim = 128
        config.detector.anchor_size = 12.0
        config.detector.rpn_batch = 128
        config.detector.pre_nms = 300
        config.detector.proposals = 100
        config.detector.roi_batch = 64
        config.data.scale_jitter = (0.5, 1.5)
        config.batch_size = 8
        config.epochs = 0.0
        config.steps = 300
        config.optim.base_lr = 0.048  # 1.5e-3 at batch 8
        config.optim.weight_decay = 0.05
        config.optim.layer_decay = 0.8
        config.optim.warmup_epochs = 0.5
    return config
