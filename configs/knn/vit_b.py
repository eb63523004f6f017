"""kNN and a quick linear classifier on frozen features of ViT-B/16, on ImageNet-1K.

    launch/local.sh --config=configs/knn/vit_b.py --config.init_from=runs/vit_b

Trains nothing: extracts features of center crops of `eval.train_images` training images and
classifies every held-out image. kNN: 20 neighbors by cosine, weighted with temperature 0.07.
The linear classifier is logistic regression by L-BFGS. To get the same numbers during
pre-training, use --config.eval.knn_every=N and --config.eval.probe_every=N.

Data: see configs/vit_l.py, with labels.
Hardware: anything; forward passes only.
Cost (arithmetic, not measured: 35 GFLOP per image): minutes on one H100 for all images.
Expect: no published number for the released weights; kNN is inherently low for masked autoencoders
(11.2 % after 100 epochs, lightly's PR 1515). The linear probe of the paper is configs/linprobe.
"""

import ml_collections

from configs import common, vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    common.knn(config)
    config.batch_size = 1024
    config.init_from = "runs/vit_b"  # or one of its steps, or other weights (docs/weights.md)
    config.data.holdout = 0
    config.eval.knn_every = 1
    config.eval.probe_every = 1
    config.eval.train_images = 0
    return config
