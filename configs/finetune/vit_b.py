"""End-to-end fine-tuning of ViT-B/16 on ImageNet-1K (official recipe; paper tables 3 and 9).

    launch/local.sh --config=configs/finetune/vit_b.py --config.init_from=runs/vit_b

For an encoder pre-trained for 1600 epochs on normalized pixels. Layer-wise decay 0.65, drop path
0.1, 100 epochs. The paper's table 9 (decay 0.75 for B too, no erasing, class token) was tuned for
the 800-epoch models trained on raw pixels.

Data: see configs/vit_l.py, with labels.
Hardware: any mesh whose device count divides 1024; --config.grad_accum=N for few devices.
Cost (arithmetic, not measured: 105.4 GFLOP per image): 1.35e19 FLOP, 4 H100-hours at peak, so about
8 at 50 % utilization. The official code took 7 h 11 min on 32 V100.
Expect: loss 6.908 before the first step; top-1 83.6 % (official code 83.57 +/- 0.08 over seeds).
"""

import ml_collections

from configs import common, vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    common.classify(config)
    config.epochs = 100.0
    config.batch_size = 1024
    config.init_from = "runs/vit_b"  # or other weights (docs/weights.md)
    config.model.num_classes = 1000
    config.model.drop_path = 0.1
    config.head.pool = "mean"
    config.head.init_std = 2e-5
    config.label_smoothing = 0.1
    config.erase_prob = 0.25
    config.mix.mixup = 0.8
    config.mix.cutmix = 1.0
    config.optim.base_lr = 5e-4
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.65
    config.data.holdout = 0
    config.data.crop_scale = (0.08, 1.0)
    config.data.randaug_magnitude = 9.0
    config.checkpoint.keep_every = 0
    config.eval_every = 1251
    config.eval_images = 0
    config.figure_every = 12510  # confusion matrix
    return config


def use(config: ml_collections.ConfigDict, pretraining: ml_collections.ConfigDict) -> None:
    """Copies the encoder and the data set of a pre-training recipe into a fine-tuning recipe.

    Augmentation and other settings of `config` do not change.
    """
    for key in pretraining.model:
        if key in config.model:
            config.model[key] = pretraining.model[key]
    shapes = ("num_train", "num_eval", "scenes", "shape_classes")
    copied = ("source", "name", "root", *shapes, "holdout", "mean", "std")
    for key in copied:
        config.data[key] = pretraining.data[key]
