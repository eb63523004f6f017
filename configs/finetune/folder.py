"""Fine-tuning on your own labeled images: one folder per class.

    launch/local.sh --config=configs/finetune/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

The model's sizes and the pixel mean and standard deviation come from `init_from` (a run, or any
weights of docs/weights.md), the classes from the folders, and epochs, batch size, warmup and
held-out images from the number of images. The head reads the class token, so that the result can
be exported to Hugging Face and timm.

    launch/local.sh --config=configs/finetune/folder.py:quick --config.init_from=runs/folder_quick \
        --config.data.root=DIR

`quick` makes 300 updates, without mixing and erasing, which need longer runs.

Hardware: one GPU; `quick` runs on two CPU cores.
Cost (two CPU cores, measured beside other work): `quick` 50 to 60 images/s, seven minutes.
Expect: `quick` after configs/folder.py:quick on 3,068 photos of clothes (10 classes): held-out
top-1 39.6 % at step 255, the best of 300 (one seed; stopped at step 290).
"""

import ml_collections

from configs import common
from configs.finetune import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "quick"."""
    common.check_setting(setting, "full", "quick")
    config = vit_b.get_config()
    common.own_labels(config, setting)
    config.head.pool = "cls"
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.75
    config.data.crop_scale = (0.2, 1.0)  # small sets: less distortion than ImageNet's 0.08
    if setting == "quick":
        config.model.drop_path = 0.0
        config.optim.base_lr = 4e-3
        config.data.crop_scale = (0.5, 1.0)
        config.data.randaug_magnitude = 0.0
        config.erase_prob = 0.0
        config.mix.mixup = 0.0
        config.mix.cutmix = 0.0
    return config
