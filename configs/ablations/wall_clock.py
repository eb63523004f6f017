r"""Wall-clock time of pre-training with and without mask tokens in the encoder (paper table 2).

    python -m mae_jax.tools.bench step --config=configs/vit_l.py:ablation \
        --config.batch_size=8 --rows=configs/ablations/wall_clock.py

alternates the three rows in one process; --config=configs/vit_h.py:ablation works too, or
configs/vit_b.py if memory is short. To train one row:

    launch/local.sh --config=configs/ablations/wall_clock.py:mask_tokens_8

Rows: `mask_tokens_8` (all patches go through the encoder, the masked ones as a learned token, as
in table 1c; decoder of 8 blocks), `mae_8` (the default) and `mae_1` (decoder of one block).

Hardware: whatever you want to time; the three models are in memory together (12 bytes per
parameter and row, plus the activations of one step). Training: see configs/vit_l.py.
Cost of the timing: minutes, most of them compiling (docs/performance.md: ViT-B on a CPU).
Training one row (arithmetic, not measured), 800 epochs of ViT-L: 4.1e20, 1.28e20 and 9.9e19 FLOP.
Expect, from the paper (800 epochs on 128 TPU-v3 cores, TensorFlow), hours and speed-up: ViT-L 42.4,
15.4 (2.8x), 11.6 (3.7x); ViT-H 119.6 (extrapolated from 10 epochs), 34.5 (3.5x), 29.3 (4.1x).
Fine-tuned: ViT-L 84.2, 84.9, 84.8; ViT-H -, 85.8, 85.9.
"""

import ml_collections

from configs import vit_l
from configs.ablations import rows

ROWS = {
    "mask_tokens_8": {"model.encoder_mask_tokens": True, "model.decoder_depth": 8},
    "mae_8": {"model.encoder_mask_tokens": False, "model.decoder_depth": 8},
    "mae_1": {"model.encoder_mask_tokens": False, "model.decoder_depth": 1},
}


def get_config(row: str = "mae_8") -> ml_collections.ConfigDict:
    """The recipe of a row."""
    return rows.apply(vit_l.get_config("ablation"), rows.choose(ROWS, row))
