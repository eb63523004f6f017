"""End-to-end fine-tuning of ViT-L/16 on ImageNet-1K (official recipe; paper tables 3 and 9).

    launch/local.sh --config=configs/finetune/vit_l.py --config.init_from=runs/vit_l

Like configs/finetune/vit_b.py, with layer-wise decay 0.75, drop path 0.2, base learning rate 1e-3,
and 50 epochs.

For encoders of configs/vit_l.py:ablation (800 epochs, raw pixels), use the setting of the paper's
table 9: class token, drop path 0.1, no erasing.

    launch/local.sh --config=configs/finetune/vit_l.py:ablation

Hardware: see configs/finetune/vit_b.py.
Cost (arithmetic, not measured: 369.3 GFLOP per image): 2.37e19 FLOP, 7 H100-hours at peak. The
official code took 8 h 52 min on 32 V100.
Expect: top-1 85.9 % (official code 85.87 +/- 0.07); after 800 epochs of pre-training 85.4 %.
ablation: 84.9 %.
"""

import ml_collections

from configs.finetune import vit_b


def get_config(setting: str = "released") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "released" or "ablation", as in configs/vit_l.py."""
    if setting not in ("released", "ablation"):
        raise ValueError(f"unknown setting {setting!r}: released or ablation")
    config = vit_b.get_config()
    config.model.size = "L"
    config.init_from = "runs/vit_l"
    config.epochs = 50.0
    config.model.drop_path = 0.2
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.75
    if setting == "ablation":
        config.init_from = "runs/vit_l_ablation"
        config.head.pool = "cls"
        config.erase_prob = 0.0
        config.model.drop_path = 0.1
    return config
