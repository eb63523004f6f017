"""kNN and a quick linear classifier on the demo's encoder.

    launch/local.sh --config=configs/knn/demo.py

configs/finetune/demo.py lists all the commands that belong together.

Hardware: anything; two CPU cores are enough.
Cost: half a minute on two CPU cores (measured).
Expect: kNN 9.9 %, logistic regression 15.6 % (measured with an earlier demo).
"""

import ml_collections

from configs import demo
from configs.finetune.vit_b import use
from configs.knn import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_b.get_config()
    use(config, demo.get_config())
    config.init_from = "runs/demo"
    config.batch_size = 64
    config.eval.train_images = 4_000
    return config
