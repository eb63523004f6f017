"""Fine-tuning of ViT-H/14 at 448 pixels on ImageNet-1K (paper table 3).

    launch/local.sh --config=configs/finetune/vit_h_448.py --config.init_from=runs/vit_h

The paper gives no recipe for this size; this is the recipe for 224, as in mmpretrain. The
position table is resized from 16 x 16 to 32 x 32 (bicubic), which is logged at startup.

Hardware: 1024 images of 1024 patches need many devices; --config.grad_accum=N,
--config.mesh.fsdp=M.
Cost (arithmetic, not measured: 4390 GFLOP per image): 2.8e20 FLOP, 79 H100-hours at peak.
Expect: top-1 87.8 % in the paper, 87.3 % with mmpretrain.
"""

import ml_collections

from configs.finetune import vit_h


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    config = vit_h.get_config()
    config.model.image_size = (448, 448)
    return config
