"""ViT-L/16 pre-training on ImageNet-1K: the paper's default model (tables 3 and 8).

    launch/local.sh --config=configs/vit_l.py

Released-weights setting: 1600 epochs, normalised pixels. The 800-epoch setting of the paper's
ablations (raw pixels, tables 1 and 2, figures 5 and 7) is one flag away:

    launch/local.sh --config=configs/vit_l.py:ablation

Data: ImageNet-1K prepared by TFDS, or raw class folders with
    --config.data.source=folder --config.data.root=DIR   (DIR has train/ and val/)

Hardware: any TPU or GPU mesh on which 4096 divides evenly; --config.grad_accum=N makes the same
update on a few devices. Cost (arithmetic, not measured: 124.5 GFLOP per image for training): 1600
epochs are 2.55e20 FLOP, 72 H100-hours at peak, so some 145 at 50 % utilisation.
Expect: loss 1.80 before the first step (normalised pixels), about 0.40 to 0.45 at the end;
fine-tuned 85.9 %, linear probe 75.8 % (paper tables 3 and 12).
"""

import ml_collections


def get_config(setting: str = "released") -> ml_collections.ConfigDict:
    """The recipe; `setting` is "released" or "ablation"."""
    if setting not in ("released", "ablation"):
        raise ValueError(f"unknown setting {setting!r}: released or ablation")
    config = ml_collections.ConfigDict()
    config.task = "pretrain"
    config.seed = 0
    config.epochs = 1600.0 if setting == "released" else 800.0
    config.steps = 0  # number of updates; 0: as many as `epochs` needs
    config.batch_size = 4096  # global
    config.grad_accum = 1  # parts that a batch is worked through in
    config.resume = ""  # another run (or one of its steps) to continue in a new workdir
    config.init_from = ""  # a run, or other weights (docs/weights.md), to begin with
    config.init_channels = "error"  # weights of other channels: mean, repeat or select:I,J,...

    config.model = ml_collections.ConfigDict()
    config.model.size = "L"  # Ti, S, B, L, H, 2B
    config.model.image_size = (224, 224)
    config.model.patch_size = (16, 16)
    config.model.channels = 3
    config.model.embed_dim = 0  # 0: from the size; likewise depth and num_heads
    config.model.depth = 0
    config.model.num_heads = 0
    config.model.mlp_ratio = 4.0
    config.model.decoder_embed_dim = 512
    config.model.decoder_depth = 8  # 0: a linear head, for encoder_mask_tokens
    config.model.decoder_num_heads = 16
    config.model.encoder_mask_tokens = False  # True: the encoder sees hidden patches too, as [M]
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.model.attention = "xla"  # or cudnn (NVIDIA, bfloat16)
    config.model.remat = "none"  # to save memory compute again what is not kept: dots, blocks

    config.mask = ml_collections.ConfigDict()
    config.mask.ratio = 0.75
    config.mask.kind = "random"

    config.target = ml_collections.ConfigDict()
    config.target.kind = "pixel"  # or pca, or tokens of a tokenizer
    config.target.normalize = setting == "released"  # each patch by its own mean and deviation
    config.target.components = 96  # pca: coefficients of a patch
    config.target.fit_images = 4096  # pca: training images that it is learnt from
    config.target.loss_on = "masked"  # or all: visible patches too
    config.target.tokenizer = ""  # tokens: where it is (configs/tokenizer.py makes one)

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"
    config.optim.base_lr = 1.5e-4  # per 256 images
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 40.0
    config.optim.weight_decay = 0.05
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.mu_dtype = "float32"  # of adamw's first moment; bfloat16 saves memory
    config.optim.momentum = 0.9  # of lars
    config.optim.grad_clip = 0.0  # off, as in the paper

    config.data = ml_collections.ConfigDict()
    config.data.source = "tfds"  # tfds, folder, shapes
    config.data.name = "imagenet2012"  # tfds: data set
    config.data.root = ""  # folder: directory or list file; tfds: data_dir
    config.data.split = "train"
    config.data.eval_split = ""  # "": the source's validation split, or `holdout` images
    config.data.holdout = 1000
    config.data.num_train = 50_000  # shapes: how many images
    config.data.num_eval = 1_000
    # crop_once: one draw, for probing; crop_fixed: one size; none: evaluation transform
    config.data.augment = "crop"
    config.data.crop_scale = (0.2, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.hflip = True
    config.data.color_jitter = 0.0  # strength
    config.data.randaug_magnitude = 0.0  # 0: no RandAugment
    config.data.randaug_std = 0.5
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.resizer = "auto"  # pillow to evaluate, fast to train
    config.data.resize_antialias = True  # False is visibly aliased
    config.data.exif_transpose = True
    config.data.dtype = "uint8"  # float32: arrays in their own units
    config.data.max_bad_fraction = 0.001  # of unreadable files; more stops the run
    config.data.storage_wait = 300.0  # seconds for storage to come back; then save and stop
    config.data.workers = 0  # decoding threads; 0: all cores
    config.data.prefetch = 2  # batches
    config.data.cache = "none"  # in memory: encoded (files), decoded (pixels)
    config.data.cache_gb = 0.0  # per host; 0: half of what is available
    config.data.on_device = False  # True: small sets lie decoded on the devices, cropped there

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 0
    config.checkpoint.every_minutes = 15.0
    config.checkpoint.keep = 3
    config.checkpoint.keep_every = 31250  # steps; about 100 epochs: kept for ever
    config.checkpoint.max_failures = 10  # failed saves in a row that end the run

    config.nan_guard = ml_collections.ConfigDict()
    config.nan_guard.max_skips = 10  # updates in a row that are not finite and end the run

    config.watchdog = ml_collections.ConfigDict()  # shows where every thread is when nothing moves
    config.watchdog.seconds = 600.0  # without a step, evaluated batch or save; 0: never
    config.watchdog.start_seconds = 3600.0  # the same for starting, compiling and restoring
    config.watchdog.abort = False  # True: then also end the process

    config.log_every = 50
    config.eval_every = 3125
    config.eval_images = 8192  # 0: all
    config.figure_every = 3125
    config.figure_images = 8

    config.eval = ml_collections.ConfigDict()  # cheap signs of quality, where images have labels
    config.eval.knn_every = 0  # steps between kNN classifications of held-out images; 0: never
    config.eval.probe_every = 0  # the same for a linear classifier on frozen features
    config.eval.feature = "cls"  # or mean, of the patch tokens
    config.eval.knn_k = 20
    config.eval.train_images = 50_000  # labelled images to learn from; 0: all

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # -1: all devices that fsdp leaves
    config.mesh.fsdp = 1
    return config
