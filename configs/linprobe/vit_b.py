"""Linear probing of ViT-B/16 on ImageNet-1K (paper tables 10 and 12).

    launch/local.sh --config=configs/linprobe/vit_b.py --config.init_from=runs/vit_b

The frozen class token after the final norm, then BatchNorm without scale and bias, and one linear
layer; LARS without weight decay, only single-draw random crops and flips. A sensitive check of
pre-training: it reveals errors that fine-tuning hides. A decoder of two blocks costs about 15
points.

Data: see configs/vit_l.py, with labels.
Hardware: any mesh whose device count divides 16384 (almost only forward passes);
--config.grad_accum=N for few devices. BatchNorm statistics are over 512 images, as on
each device of the official code.
Cost (arithmetic, not measured: 35 GFLOP per image): 4e18 FLOP, 1.1 H100-hours at peak. The
official code took 2 h 20 min on 32 V100.
Expect: top-1 68.0 % (official code 67.8).
"""

import ml_collections

from configs.finetune import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    config.epochs = 90.0
    config.batch_size = 16384
    config.trainable = "head"
    config.model.drop_path = 0.0
    config.head.pool = "cls"
    config.head.init_std = 0.01
    config.head.batch_norm = True
    config.head.batch_norm_group = 512
    config.label_smoothing = 0.0
    config.erase_prob = 0.0
    config.mix.mixup = 0.0
    config.mix.cutmix = 0.0
    config.optim.name = "lars"
    config.optim.base_lr = 0.1
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 10.0
    config.optim.weight_decay = 0.0
    config.optim.layer_decay = 1.0
    config.data.augment = "crop_once"
    config.data.randaug_magnitude = 0.0
    config.eval_every = 78
    config.figure_every = 780
    return config
