"""Every key of a recipe with its default, so that a recipe shows only what it chooses.

A recipe begins with the keys of pre-training, or with another recipe:

    config = common.pretrain()
    config.model.size = "L"

`classify`, `knn` and `tokenizer` turn it into one of those tasks. What a key may be is in
docs/configuration.md.
"""

import ml_collections

DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "encoder_mask_tokens")


def pretrain() -> ml_collections.ConfigDict:
    """All keys of pre-training."""
    config = ml_collections.ConfigDict()
    config.task = "pretrain"  # or classify, knn, tokenizer: see below
    config.seed = 0  # decides every random draw
    config.epochs = 100.0  # passes over the training images
    config.steps = 0  # number of updates; 0: as many as `epochs` needs
    config.batch_size = 256  # on all devices together
    config.grad_accum = 1  # parts that a batch is worked through in
    config.resume = ""  # another run (or one of its steps) to continue in a new workdir
    config.init_from = ""  # a run, or other weights (docs/weights.md), to begin with
    config.init_channels = "error"  # weights of other channels: mean, repeat or select:I,J,...

    config.model = ml_collections.ConfigDict()
    config.model.size = "B"  # Ti, S, B, L, H, 2B
    config.model.image_size = (224, 224)  # height and width
    config.model.patch_size = (16, 16)
    config.model.channels = 3  # of the images
    config.model.embed_dim = 0  # 0: from the size; likewise depth and num_heads
    config.model.depth = 0
    config.model.num_heads = 0
    config.model.mlp_ratio = 4.0  # hidden width of the MLPs, in widths
    config.model.decoder_embed_dim = 512
    config.model.decoder_depth = 8  # 0: a linear head, for encoder_mask_tokens
    config.model.decoder_num_heads = 16
    config.model.encoder_mask_tokens = False  # True: the encoder sees hidden patches too, as [M]
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.model.attention = "xla"  # or cudnn (NVIDIA, bfloat16)
    config.model.remat = "none"  # recompute activations to save memory: dots, blocks

    config.mask = ml_collections.ConfigDict()
    config.mask.ratio = 0.75  # share of hidden patches
    config.mask.kind = "random"  # or block, grid, checkerboard

    config.target = ml_collections.ConfigDict()
    config.target.kind = "pixel"  # or pca, hog, or tokens of a tokenizer
    config.target.normalize = False  # pixel: each patch by its own mean and deviation
    config.target.components = 96  # pca: coefficients of a patch
    config.target.fit_images = 4096  # pca: training images that it is learned from
    config.target.loss_on = "masked"  # or all: visible patches too
    config.target.tokenizer = ""  # tokens: where it is (configs/tokenizer.py makes one)

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"  # or lars
    config.optim.base_lr = 1.5e-4  # learning rate per 256 images
    config.optim.min_lr = 0.0  # learning rate at the end
    config.optim.warmup_epochs = 10.0
    config.optim.weight_decay = 0.05  # decoupled
    config.optim.b1 = 0.9  # adamw: decay of the first moment
    config.optim.b2 = 0.95  # adamw: decay of the second moment
    config.optim.mu_dtype = "float32"  # adamw: of the first moment; bfloat16 saves memory
    config.optim.momentum = 0.9  # lars
    config.optim.grad_clip = 0.0  # largest norm of the gradient; 0: off

    config.data = ml_collections.ConfigDict()
    config.data.source = "shapes"  # or folder, tfds
    config.data.name = ""  # tfds: the data set
    config.data.root = ""  # folder: directory or list file; tfds: data_dir
    config.data.split = "train"
    config.data.eval_split = ""  # "": the source's validation split, or `holdout` images
    config.data.holdout = 0  # training images held out where there is no evaluation split
    config.data.num_train = 50_000  # shapes: how many images
    config.data.num_eval = 1_000  # shapes: how many held-out images
    config.data.augment = "crop"  # or crop_once (probing), crop_fixed, none (evaluation transform)
    config.data.crop_scale = (0.2, 1.0)  # share of the area
    config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.data.hflip = True  # mirror half of the training images
    config.data.color_jitter = 0.0  # strength; 0: off
    config.data.randaug_magnitude = 0.0  # 0: no RandAugment
    config.data.randaug_std = 0.5  # of the magnitude
    config.data.mean = (0.485, 0.456, 0.406)  # of the pixels, for each channel
    config.data.std = (0.229, 0.224, 0.225)
    config.data.resizer = "auto"  # pillow to evaluate, fast to train
    config.data.resize_antialias = True  # False is visibly aliased
    config.data.exif_transpose = True  # turn photos as their EXIF says
    config.data.dtype = "uint8"  # float32: arrays in their own units
    config.data.max_bad_fraction = 0.001  # of unreadable files; more stops the run
    config.data.storage_wait = 300.0  # seconds for storage to come back; then save and stop
    config.data.workers = 0  # decoding threads; 0: all cores
    config.data.prefetch = 2  # batches prepared ahead
    config.data.cache = "none"  # in memory: encoded (files), decoded (pixels)
    config.data.cache_gb = 0.0  # per host; 0: half of what is available
    config.data.on_device = False  # True: small sets are decoded on the devices and cropped there

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 0  # 0: not by steps
    config.checkpoint.every_minutes = 15.0  # 0: not by time
    config.checkpoint.keep = 3  # newest checkpoints that are kept
    config.checkpoint.keep_every = 0  # steps whose multiples are kept permanently; 0: none
    config.checkpoint.max_failures = 10  # failed saves in a row that end the run

    config.nan_guard = ml_collections.ConfigDict()
    config.nan_guard.max_skips = 10  # updates in a row that are not finite and end the run

    config.watchdog = ml_collections.ConfigDict()  # prints the stack of every thread of a hung run
    config.watchdog.seconds = 600.0  # without a step, evaluated batch or save; 0: never
    config.watchdog.start_seconds = 3600.0  # the same for starting, compiling and restoring
    config.watchdog.abort = False  # True: then also end the process

    config.log_every = 50  # steps
    config.eval_every = 1000  # steps; 0: never
    config.eval_images = 1024  # 0: all held-out images
    config.figure_every = 1000  # steps; 0: never
    config.figure_images = 8

    config.eval = ml_collections.ConfigDict()  # cheap signs of quality, where images have labels
    config.eval.knn_every = 0  # steps between kNN classifications of held-out images; 0: never
    config.eval.probe_every = 0  # the same for a linear classifier on frozen features
    config.eval.feature = "cls"  # or mean, of the patch tokens
    config.eval.knn_k = 20  # neighbors
    config.eval.train_images = 50_000  # labeled images to learn from; 0: all

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: all that fsdp leaves
    config.mesh.fsdp = 1  # devices that share the parameters
    return config


def classify(config: ml_collections.ConfigDict) -> None:
    """Turns a recipe of pre-training into one of classification."""
    _without_decoder(config)
    del config.mask, config.target, config.eval
    config.task = "classify"
    config.init_weights = True  # False: only sizes and pixel statistics of `init_from`
    config.trainable = "all"  # or last: `trainable_blocks` of them, final norm and head; or head
    config.trainable_blocks = 0.5  # 0.5: the MLP half of the last block
    config.model.num_classes = 0  # checked against the data; 0: whatever the data have
    config.model.drop_path = 0.0  # stochastic depth of the last block

    config.head = ml_collections.ConfigDict()
    config.head.pool = "cls"  # or mean, of the patch tokens
    config.head.init_std = 0.02  # of the head's weights
    config.head.batch_norm = False  # linear probing: statistics without scale and bias
    config.head.batch_norm_group = 0  # rows that share them in training; 0: the whole batch

    config.label_smoothing = 0.0  # share of the target for all classes
    config.erase_prob = 0.0  # share of images with an erased box
    config.mix = ml_collections.ConfigDict()
    config.mix.mixup = 0.0  # parameter of Beta; 0: off
    config.mix.cutmix = 0.0  # parameter of Beta; 0: off
    config.mix.prob = 1.0  # share of groups that are mixed
    config.mix.switch_prob = 0.5  # share of CutMix where both are on
    config.mix.group = 32  # rows that share one draw; the official batch of one GPU

    config.optim.layer_decay = 1.0  # of the learning rate, block by block downwards
    config.optim.ema = 0.0  # decay of an average of the weights, evaluated too; 0: none


def knn(config: ml_collections.ConfigDict) -> None:
    """Turns a recipe of pre-training into one of classification by neighbors: no training."""
    _without_decoder(config)
    del config.mask, config.target, config.optim
    config.task = "knn"
    config.epochs = 0.0
    config.eval_every = 0
    config.figure_every = 0


def tokenizer(config: ml_collections.ConfigDict) -> None:
    """Turns a recipe of pre-training into one of a tokenizer, a discrete autoencoder."""
    config.task = "tokenizer"
    config.tokenizer = ml_collections.ConfigDict()
    config.tokenizer.vocab_size = 8192  # number of codes
    config.tokenizer.hidden_dim = 256  # of the first group, doubled from group to group
    config.tokenizer.groups = 4  # a code stands for 2^(groups - 1) pixels of a side
    config.tokenizer.blocks_per_group = 2
    config.tokenizer.temperature = (1.0, 1 / 16)  # of the Gumbel-softmax: first, last
    config.tokenizer.kl_weight = 1.0  # of the divergence from uniform codes; 1: the bound


def by_images(config: ml_collections.ConfigDict) -> None:
    """Leaves length, batch and intervals to the number of images (docs/finetuning.md)."""
    config.epochs = -1.0
    config.batch_size = -1
    config.optim.warmup_epochs = -1.0
    config.data.holdout = -1
    config.eval_every = -1
    config.figure_every = -1


def as_pretrained(config: ml_collections.ConfigDict) -> None:
    """Leaves sizes and pixel statistics to the weights of `init_from`."""
    config.model.size = "init_from"
    config.model.image_size = (0, 0)
    config.model.patch_size = (0, 0)
    config.model.channels = 0
    config.data.mean = ()
    config.data.std = ()
    config.data.dtype = "init_from"


def check_setting(setting: str, *known: str) -> None:
    """Raises ValueError unless a recipe knows this setting (`--config=FILE:SETTING`)."""
    if setting not in known:
        raise ValueError(f"unknown setting {setting!r}: {' or '.join(known)}")


def _without_decoder(config: ml_collections.ConfigDict) -> None:
    for key in DECODER:
        del config.model[key]
