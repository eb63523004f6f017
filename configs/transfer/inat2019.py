"""Fine-tuning of ViT-B/16 on iNaturalist 2019 (paper section 5, table 6).

    launch/local.sh --config=configs/transfer/inat2019.py --config.init_from=runs/vit_b \
        --config.data.root=DIR

Uses the ImageNet-1K fine-tuning recipe. The paper tuned learning rate and epochs for each set and
does not give the values: search for both. For L and H set model.size, model.patch_size,
optim.layer_decay=0.75 and model.drop_path as configs/finetune/vit_l.py and vit_h.py do.

Data: TFDS does not have it: class folders, DIR/train/<class>/ and DIR/val/<class>/.
1,010 classes, about 265,213 training and 3,030 validation images.
Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 105.4 GFLOP per image): about 0.8 H100-hours at peak for 100 epochs.
Expect (B / L / H / H at 448, tuned by the authors): 80.5 / 83.4 / 85.7 / 88.3 % top-1.
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.num_classes = 1010
    config.data.source = "folder"
    config.eval_every = 258  # an epoch
    config.figure_every = 0
    return config
