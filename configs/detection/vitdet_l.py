"""Detection and instance segmentation on COCO: ViTDet-L with Mask R-CNN (2203.16527).

    launch/local.sh --config=configs/detection/vitdet_l.py --config.init_from=runs/vit_l \
        --config.data.root=COCO

Like configs/detection/vitdet_b.py, with drop path 0.4 and layer-wise decay 0.8.

Hardware: see configs/detection/vitdet_b.py.
Cost (published, detectron2 on A100): 0.603 s and 20.9 GB per image, 1,976 A100-hours. Not run here.
Expect: box AP 55.5, mask AP 49.2 (ViTDet's release; 53.3 / 47.2 in the MAE paper, table 4).
"""

import ml_collections

from configs.detection import vitdet_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vitdet_b.get_config()
    config.init_from = "runs/vit_l"
    config.model.size = "L"
    config.model.drop_path = 0.4
    config.optim.layer_decay = 0.8
    return config
