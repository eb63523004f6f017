"""kNN and a quick linear classifier on frozen features of your own labeled images.

    launch/local.sh --config=configs/knn/folder.py --config.init_from=runs/folder \
        --config.data.root=DIR

Trains nothing: a first answer, in a minute, to whether features separate your classes.

Hardware: anything; forward passes only.
Cost (two CPU cores, measured beside other work): 66 s for 3,409 photos at 96 pixels, 51 s of CPU.
Expect: after configs/folder.py:quick on 3,068 photos of clothes (10 classes): held-out top-1 36.4 %
by kNN, 43.1 % by the linear classifier; 23.8 % are in the largest class.
"""

import ml_collections

from configs import common
from configs.knn import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    common.as_pretrained(config)
    config.init_from = "runs/folder"
    config.batch_size = 64
    config.data.source = "folder"
    config.data.holdout = -1
    config.eval.feature = "mean"
    return config
