"""Fine-tuning of ViT-B/16 on Places365 (paper section 5, table 6).

    launch/local.sh --config=configs/transfer/places365.py --config.init_from=runs/vit_b

Uses the ImageNet-1K fine-tuning recipe. The paper tuned learning rate and epochs for each set and
does not give the values: search for both. For L and H set model.size, model.patch_size,
optim.layer_decay=0.75 and model.drop_path as configs/finetune/vit_l.py and vit_h.py do.

Data: TFDS `places365_small`, or class folders with --config.data.source=folder
--config.data.root=DIR
365 classes, about 1,803,460 training and 36,500 validation images.
Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 105.4 GFLOP per image): about 5.3 H100-hours at peak for 100 epochs.
Expect (B / L / H / H at 448, tuned by the authors): 57.9 / 59.4 / 59.8 / 60.3 % top-1.
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.num_classes = 365
    config.data.name = "places365_small"
    config.eval_every = 1761  # an epoch
    config.figure_every = 0
    return config
