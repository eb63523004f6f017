"""Detection and instance segmentation on COCO: ViTDet-H with Mask R-CNN (2203.16527).

    launch/local.sh --config=configs/detection/vitdet_h.py --config.init_from=runs/vit_h \
        --config.data.root=COCO

Like configs/detection/vitdet_b.py, for 138,281 steps (75 epochs), with drop path 0.5, layer-wise
decay 0.9, and weight decay on all parameters, as released. The patch kernel of the pre-trained
model is resized from 14 to 16 pixels.

Hardware: see configs/detection/vitdet_b.py.
Cost (published, detectron2 on A100): 1.098 s and 31.5 GB per image, 2,699 A100-hours. Not run here.
Expect: box AP 56.7, mask AP 50.2 (ViTDet's release).
"""

import ml_collections

from configs.detection import vitdet_b

STEPS = 138_281


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vitdet_b.get_config()
    config.init_from = "runs/vit_h"
    config.steps = STEPS
    config.model.size = "H"
    config.model.drop_path = 0.5
    config.optim.layer_decay = 0.9
    config.optim.decays = "all"
    config.optim.milestones = (122_916 / STEPS, 133_159 / STEPS)
    config.optim.warmup_epochs = 187.5 * 64 / vitdet_b.TRAIN_IMAGES  # 187.5 steps, as released
    return config
