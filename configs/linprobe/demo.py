"""Linear probing of the demo's encoder.

    launch/local.sh --config=configs/linprobe/demo.py

configs/finetune/demo.py lists all the commands that belong together.

Hardware: anything; two CPU cores are enough.
Cost: a minute and three quarters on two CPU cores (measured).
Expect: held-out top-1 11.0 % (measured with an earlier demo).
"""

import ml_collections

from configs.finetune import demo
from configs.linprobe import vit_b


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config, fine = vit_b.get_config(), demo.get_config()
    config.model, config.data = fine.model, fine.data
    config.data.augment = "crop_once"
    for key in ("init_from", "epochs", "log_every", "eval_every", "figure_every"):
        config[key] = fine[key]
    config.batch_size = 64
    config.head.batch_norm_group = 0
    config.optim.warmup_epochs = 0.1
    config.optim.base_lr = 25.6  # 6.4 as in the paper's batch of 16384: there are few steps
    return config
