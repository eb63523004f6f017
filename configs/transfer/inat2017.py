"""Fine-tuning of ViT-B/16 on iNaturalist 2017 (paper section 5, table 6).

    launch/local.sh --config=configs/transfer/inat2017.py --config.init_from=runs/vit_b

Uses the ImageNet-1K fine-tuning recipe. The paper tuned learning rate and epochs for each set and
does not give the values: search for both. For L and H set model.size, model.patch_size,
optim.layer_decay=0.75 and model.drop_path as configs/finetune/vit_l.py and vit_h.py do.

Data: TFDS `i_naturalist2017`, or class folders with --config.data.source=folder
--config.data.root=DIR
5,089 classes, about 579,184 training and 95,986 validation images.
Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 105.4 GFLOP per image): about 1.7 H100-hours at peak for 100 epochs.
Expect (B / L / H / H at 448, tuned by the authors): 70.5 / 75.7 / 79.3 / 83.4 % top-1.
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.num_classes = 5089
    config.data.name = "i_naturalist2017"
    config.eval_every = 565  # an epoch
    config.figure_every = 0
    return config
