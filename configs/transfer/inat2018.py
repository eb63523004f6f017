"""Fine-tuning of ViT-B/16 on iNaturalist 2018 (paper section 5, table 6).

    launch/local.sh --config=configs/transfer/inat2018.py --config.init_from=runs/vit_b

Uses the ImageNet-1K fine-tuning recipe. The paper tuned learning rate and epochs for each set and
does not give the values: search for both. For L and H set model.size, model.patch_size,
optim.layer_decay=0.75 and model.drop_path as configs/finetune/vit_l.py and vit_h.py do.

Data: TFDS `i_naturalist2018`, or class folders with --config.data.source=folder
--config.data.root=DIR
8,142 classes, about 437,513 training and 24,426 validation images.
Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 105.4 GFLOP per image): about 1.3 H100-hours at peak for 100 epochs.
Expect (B / L / H / H at 448, tuned by the authors): 75.4 / 80.1 / 83.0 / 86.8 % top-1.
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.num_classes = 8142
    config.data.name = "i_naturalist2018"
    config.eval_every = 427  # an epoch
    config.figure_every = 0
    return config
