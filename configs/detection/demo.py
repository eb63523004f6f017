"""Detection on synthetic images: circles, squares and triangles with their boxes and masks.

    launch/local.sh --config=configs/detection/demo.py

The encoder starts from `clothing-96`, small weights that come with mae_jax, pre-trained on photos
of clothes. To see what they are worth, train the same network from scratch:

    launch/local.sh --config=configs/detection/demo.py --config.init_weights=False

Hardware: anything; two CPU cores are enough.
Cost: 4 min 56 s on two CPU cores (measured), about one of it compiling.
Expect: box AP 0.30, mask AP 0.32 on 64 held-out images (AP50 0.47 for both; one seed). Objects are
outlined well; their classes are still confused.
"""

import ml_collections

from configs import common, demo


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = demo.get_config()
    common.detect(config)
    common.as_pretrained(config)
    for key in ("embed_dim", "depth", "num_heads"):
        config.model[key] = 0
    config.init_from = "clothing-96"
    config.epochs = 0.0
    config.steps = 1000
    config.batch_size = 4
    config.detector.pretrain_size = (0, 0)
    config.detector.window = 4
    config.detector.width = 32
    config.detector.hidden_dim = 128
    config.detector.anchor_size = 12.0
    config.detector.rpn_batch = 64
    config.detector.pre_nms = 200
    config.detector.proposals = 48
    config.detector.roi_batch = 32
    config.detector.detections = 20
    config.data.num_train = 2_000
    config.data.num_eval = 64
    config.data.scenes = "cluttered"
    config.data.shape_classes = 3  # circles, squares, triangles
    config.data.scale_jitter = (0.8, 1.25)
    config.data.max_objects = 16
    config.optim.base_lr = 0.096  # 1.5e-3 at batch 4
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.8
    config.optim.warmup_epochs = 0.1
    config.optim.warmup_start = 0.001
    config.checkpoint.every_steps = 0
    config.checkpoint.keep_best = "eval/box_ap"
    config.log_every = 50
    config.eval_every = 500
    config.eval_images = 64
    config.figure_every = 500
    config.figure_images = 6
    return config
