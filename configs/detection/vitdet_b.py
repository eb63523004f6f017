"""Detection and instance segmentation on COCO: ViTDet-B with Mask R-CNN (2203.16527).

    launch/prepare_coco.sh --zips=DIR --out=COCO
    launch/local.sh --config=configs/detection/vitdet_b.py --config.init_from=runs/vit_b \
        --config.data.root=COCO

`init_from` is a pre-training run or official weights (mae_pretrain_vit_base.pth). The recipe is
detectron2's: 1024 pixels, large-scale jitter, AdamW, 184,375 steps of 64 images (100 epochs),
learning rate 1e-4, layer-wise decay 0.7, drop path 0.1. configs/detection/fpn_b.py is the MAE
paper's own protocol. With another batch size the learning rate scales linearly; keep the number of
epochs: set --config.steps to 11,800,000 / batch_size.

Hardware: published on 64 GPUs with one image each. The batch splits over all devices; with fewer,
raise --config.grad_accum and set --config.model.remat=blocks.
Cost (published, detectron2 on A100): 0.314 s and 10.9 GB per image, 1,030 A100-hours. Not run here.
Expect: box AP 51.6, mask AP 45.9 (ViTDet's release; 50.3 / 44.9 in the MAE paper, table 4).
"""

import ml_collections

from configs import common, vit_l

TRAIN_IMAGES = 117_266  # of COCO train2017, with objects
STEPS = 184_375


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_l.get_config()
    common.detect(config)
    config.init_from = "runs/vit_b"
    config.epochs = 0.0
    config.steps = STEPS
    config.batch_size = 64
    config.model.size = "B"
    config.model.image_size = (1024, 1024)
    config.model.drop_path = 0.1
    config.data.source = "coco"
    config.data.split = "train2017"
    config.data.eval_split = "val2017"
    config.optim.base_lr = 4e-4  # 1e-4 at batch 64
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.1
    config.optim.layer_decay = 0.7
    config.optim.schedule = "steps"
    config.optim.milestones = (163_889 / STEPS, 177_546 / STEPS)
    config.optim.warmup_epochs = 250 * 64 / TRAIN_IMAGES  # 250 steps
    config.optim.warmup_start = 0.001
    config.eval_every = 18_438
    config.eval_images = 0
    config.figure_every = 5_000
    config.figure_images = 6
    config.checkpoint.keep_best = "eval/box_ap"
    return config
