"""Detection on COCO by the MAE paper's own protocol (section 5, table 4; Li et al., 2111.11429).

    launch/local.sh --config=configs/detection/fpn_b.py --config.init_from=runs/vit_b \
        --config.data.root=COCO

The differences from configs/detection/vitdet_b.py: a feature pyramid network on four maps of the
encoder, BatchNorm over the whole batch in pyramid and heads, relative positions shared by blocks,
windows of 16, learning rate 8e-5 with cosine decay, no layer-wise decay. The paper searched its
hyperparameters; these are those of the reproduction hustvl/MIMDet. For 25 or 50 epochs set
--config.steps to a quarter or a half.

Hardware: see configs/detection/vitdet_b.py.
Cost: not published for this protocol; 118.7 M parameters. Not run here.
Expect: box AP 50.3, mask AP 44.9 (paper; 48.1 / 43.2 after 25 epochs, 50.1 / 44.6 after 50).
"""

import ml_collections

from configs.detection import vitdet_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vitdet_b.get_config()
    config.detector.backbone = "fpn"
    config.detector.window = 16
    config.optim.base_lr = 3.2e-4  # 8e-5 at batch 64
    config.optim.layer_decay = 1.0
    config.optim.decays = "weights"
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.25
    return config
