"""kNN and a quick linear classifier on frozen features of CIFAR-10.

    launch/local.sh --config=configs/knn/cifar10.py

    launch/local.sh --config=configs/knn/cifar10.py:laptop    after configs/cifar10.py:laptop

--config.init_from= measures an untrained encoder: the baseline to beat.

Data: see configs/cifar10.py; the 5,000 held-out images are the same.
Hardware: anything.
Cost: laptop: two and a quarter minutes on two CPU cores (measured, next to another run). The full
setting was not run.
Expect: laptop: kNN 45.6 %, logistic regression 54.6 %; with an untrained encoder 30.1 % and 35.3
% (measured, seed 0).
"""

import ml_collections

from configs import cifar10
from configs.finetune.vit_b import use
from configs.knn import vit_b


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "laptop", as in configs/cifar10.py."""
    config = vit_b.get_config()
    use(config, cifar10.get_config(setting))
    config.init_from = "runs/cifar10" if setting == "full" else "runs/cifar10_laptop"
    return config
