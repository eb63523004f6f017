"""Fine-tuning of ViT-B/16 on Places205 (paper section 5, table 6).

    launch/local.sh --config=configs/transfer/places205.py --config.init_from=runs/vit_b \
        --config.data.root=DIR

Uses the ImageNet-1K fine-tuning recipe. The paper tuned learning rate and epochs for each set and
does not give the values: search for both. For L and H set model.size, model.patch_size,
optim.layer_decay=0.75 and model.drop_path as configs/finetune/vit_l.py and vit_h.py do.

Data: TFDS does not have it: class folders, DIR/train/<class>/ and DIR/val/<class>/.
205 classes, about 2,450,000 training and 20,500 validation images.
Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 105.4 GFLOP per image): about 7.3 H100-hours at peak for 100 epochs.
Expect (B / L / H / H at 448, tuned by the authors): 63.9 / 65.8 / 65.9 / 66.8 % top-1.
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.model.num_classes = 205
    config.data.source = "folder"
    config.eval_every = 2392  # an epoch
    config.figure_every = 0
    return config
