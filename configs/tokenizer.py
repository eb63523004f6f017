"""A tokenizer for pre-training on tokens: DALL-E's discrete autoencoder on your own images.

    launch/local.sh --config=configs/tokenizer.py

Images of 112 pixels become 14 x 14 codes out of 8192, one for each patch of 16 pixels of a
224-pixel image, as in BEiT and in the paper's ablation (tables 1d and 7). Then pre-train with

    launch/local.sh --config=configs/vit_l.py --config.target.kind=tokens \\
      --config.target.tokenizer=runs/tokenizer

A small one for CIFAR-10, with 8 x 8 codes out of 512 for patches of 4 pixels:

    launch/local.sh --config=configs/tokenizer.py:cifar10

Architecture, batch size, optimizer, and temperatures follow DALL-E (2102.12092, appendix A.2),
which was trained for 3,000,000 updates on 250 million images: results will differ. Differences in
the recipe: the temperature falls over the whole run; the KL divergence has weight 1, the true ELBO,
from the start (in DALL-E it rises to 6.6 over the first 5000 updates); no averaged weights.

Hardware: any GPU or TPU mesh whose device count divides 512; cifar10: two CPU cores are enough.
Cost (arithmetic, not measured): 333 GFLOP per image for training; 40 epochs of ImageNet-1K are
1.7e19 FLOP, 5 H100-hours at peak. cifar10 (measured): five minutes on two busy CPU cores.
Expect: not run at full size. cifar10 (measured, most likely codes of held-out images): mean squared
error of the pixels 0.0088 (each image in its mean color: 0.042), perplexity 55, colors and rough
shapes in runs/tokenizer_cifar10/pictures.
"""

import ml_collections

from configs import cifar10, common, vit_l


def get_config(setting: str = "full") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "full" or "cifar10"."""
    if setting not in ("full", "cifar10"):
        raise ValueError(f"unknown setting {setting!r}: full or cifar10")
    config = vit_l.get_config() if setting == "full" else cifar10.get_config("laptop")
    common.tokenizer(config)
    config.optim.b2 = 0.999
    config.optim.weight_decay = 1e-4
    if setting == "full":
        config.epochs = 40.0
        config.batch_size = 512
        config.model.image_size = (112, 112)
        config.model.patch_size = (8, 8)  # the pixels that a code covers
        config.optim.base_lr = 5e-5  # 1e-4 for the batch of 512
        config.optim.min_lr = 1.25e-6
        config.optim.b1 = 0.9
        config.optim.warmup_epochs = 1.0
    else:
        config.epochs = 0.6  # of 45,000 images
        config.batch_size = 16  # each image has 64 codes: many small steps
        config.tokenizer.vocab_size = 512
        config.tokenizer.hidden_dim = 32
        config.tokenizer.groups = 3
        config.tokenizer.blocks_per_group = 1
        config.optim.base_lr = 0.024  # 1.5e-3 for the batch of 16
        config.optim.b1 = 0.9
        config.optim.warmup_epochs = 0.02
        config.log_every = 20
        config.eval_every = 200
        config.eval_images = 512
        config.figure_every = 400
    return config
