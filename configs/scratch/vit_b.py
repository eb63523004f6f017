"""Supervised training of ViT-B/16 from scratch on ImageNet-1K (paper A.2, table 11).

    launch/local.sh --config=configs/scratch/vit_b.py

The baseline of table 3: no pre-training, no layer-wise decay, weight decay 0.3, and averaged
weights (decay 0.9999) that are evaluated too, as ema_top1.

Data: see configs/vit_l.py, with labels.
Hardware: any mesh whose device count divides 4096; --config.grad_accum=N for few devices.
Cost (arithmetic, not measured: 105.4 GFLOP per image): 4.05e19 FLOP, 11 H100-hours at peak.
Expect: top-1 82.3 % with averaged weights, 82.1 % without.
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.init_from = ""
    config.epochs = 300.0
    config.batch_size = 4096
    config.head.pool = "cls"
    config.head.init_std = 0.02
    config.erase_prob = 0.0
    config.optim.base_lr = 1e-4
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 20.0
    config.optim.weight_decay = 0.3
    config.optim.b2 = 0.95
    config.optim.layer_decay = 1.0
    config.optim.ema = 0.9999
    config.eval_every = 312
    config.figure_every = 3120
    return config
