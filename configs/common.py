"""Every config key with its default, so that a recipe shows only what it changes.

A recipe starts from the keys of pre-training, or from another recipe:

    config = common.pretrain()
    config.model.size = "L"

`classify`, `detect`, `knn`, and `tokenizer` convert it to those tasks. docs/configuration.md lists
the allowed values of every key.
"""

import ml_collections

DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "encoder_mask_tokens")


def pretrain() -> ml_collections.ConfigDict:
    """All keys of pre-training."""
    config = ml_collections.ConfigDict()
    config.task = "pretrain"  # or classify, detect, knn, tokenizer: see below
    config.seed = 0  # seed of all random numbers
    config.epochs = 100.0  # passes over the training images
    config.steps = 0  # number of updates; 0: use `epochs`
    config.batch_size = 256  # images per update, over all devices
    config.grad_accum = 1  # micro-batches per update
    config.resume = ""  # a run, or one of its steps, to continue in a new workdir
    config.init_from = ""  # a run, or other weights (docs/weights.md), to initialize from
    config.init_channels = "error"  # weights with other channels: mean, repeat, select:I,J,...

    config.model = ml_collections.ConfigDict()
    config.model.size = "B"  # Ti, S, B, L, H, 2B
    config.model.image_size = (224, 224)  # height and width
    config.model.patch_size = (16, 16)
    config.model.channels = 3  # of the input images
    config.model.embed_dim = 0  # 0: set by `size`; likewise depth and num_heads
    config.model.depth = 0
    config.model.num_heads = 0
    config.model.mlp_ratio = 4.0  # hidden width of the MLPs, relative to the width
    config.model.decoder_embed_dim = 512
    config.model.decoder_depth = 8  # 0: a linear head; needs encoder_mask_tokens
    config.model.decoder_num_heads = 16
    config.model.encoder_mask_tokens = False  # True: the encoder sees masked patches too
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.model.attention = "xla"  # or cudnn (NVIDIA, bfloat16)
    config.model.remat = "none"  # recompute activations to save memory: dots, blocks

    config.mask = ml_collections.ConfigDict()
    config.mask.ratio = 0.75  # share of masked patches
    config.mask.kind = "random"  # or block, grid, checkerboard

    config.target = ml_collections.ConfigDict()
    config.target.kind = "pixel"  # or pca, hog, or tokens of a tokenizer
    config.target.normalize = False  # pixel: by the mean and deviation of each patch
    config.target.components = 96  # pca: coefficients per patch
    config.target.fit_images = 4096  # pca: training images used to fit it
    config.target.loss_on = "masked"  # or all: also visible patches
    config.target.tokenizer = ""  # tokens: its path (configs/tokenizer.py trains one)

    config.optim = ml_collections.ConfigDict()
    config.optim.name = "adamw"  # or lars
    config.optim.base_lr = 1.5e-4  # learning rate per 256 images
    config.optim.min_lr = 0.0  # final learning rate
    config.optim.warmup_epochs = 10.0
    config.optim.warmup_start = 0.0  # first learning rate, relative to the peak
    config.optim.schedule = "cosine"  # or steps, linear
    config.optim.milestones = (8 / 9, 26 / 27)  # steps: the rate drops tenfold there
    config.optim.weight_decay = 0.05  # decoupled
    config.optim.b1 = 0.9  # adamw: decay of the first moment
    config.optim.b2 = 0.95  # adamw: decay of the second moment
    config.optim.mu_dtype = "float32"  # adamw: first moment; bfloat16 saves memory
    config.optim.momentum = 0.9  # lars: momentum
    config.optim.grad_clip = 0.0  # maximum norm of the gradient; 0: off

    config.data = ml_collections.ConfigDict()
    config.data.source = "shapes"  # or folder, tfds
    config.data.name = ""  # tfds: name of the data set
    config.data.root = ""  # folder: directory or list file; tfds: data_dir
    config.data.split = "train"
    config.data.eval_split = ""  # "": the source's own validation split, or `holdout`
    config.data.holdout = 0  # training images held out if there is no validation split
    config.data.num_train = 50_000  # shapes: training images
    config.data.num_eval = 1_000  # shapes: validation images
    config.data.scenes = "cluttered"  # shapes; or plain: one large object
    config.data.shape_classes = 12  # shapes
    config.data.augment = "crop"  # or crop_once (probing), crop_fixed, none (as in evaluation)
    config.data.crop_scale = (0.2, 1.0)  # area relative to the image
    config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.data.hflip = True  # flip half of the training images
    config.data.scale_jitter = (0.1, 2.0)  # detection: size relative to the largest that fits
    config.data.max_objects = 100  # detection: per training image
    config.data.color_jitter = 0.0  # strength; 0: off
    config.data.randaug_magnitude = 0.0  # 0: off
    config.data.randaug_std = 0.5  # standard deviation of the magnitude
    config.data.mean = (0.485, 0.456, 0.406)  # per channel
    config.data.std = (0.229, 0.224, 0.225)
    config.data.resizer = "auto"  # pillow for evaluation, fast for training
    config.data.resize_antialias = True  # False: visibly aliased
    config.data.exif_transpose = True  # rotate photos according to their EXIF data
    config.data.dtype = "uint8"  # float32: keep the units of the data
    config.data.max_bad_fraction = 0.001  # unreadable share that stops the run
    config.data.storage_wait = 300.0  # seconds to wait for storage before saving and stopping
    config.data.workers = 0  # decoding threads; 0: one per core
    config.data.prefetch = 2  # batches prepared in advance
    config.data.cache = "none"  # keep in host memory: encoded (files) or decoded (pixels)
    config.data.cache_gb = 0.0  # per host; 0: half of the available memory
    config.data.on_device = False  # True: keep a small data set in device memory

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 0  # 0: off
    config.checkpoint.every_minutes = 15.0  # 0: off
    config.checkpoint.keep = 3  # number of recent checkpoints to keep
    config.checkpoint.keep_every = 0  # keep multiples of this step permanently; 0: off
    config.checkpoint.keep_best = ""  # metric by which the best is kept, such as eval/top1
    config.checkpoint.max_failures = 10  # consecutive failed saves that end the run

    config.nan_guard = ml_collections.ConfigDict()
    config.nan_guard.max_skips = 10  # consecutive non-finite updates that end the run

    config.watchdog = ml_collections.ConfigDict()  # reports the stacks of a hung run
    config.watchdog.seconds = 600.0  # without a step, evaluated batch, or save; 0: never
    config.watchdog.start_seconds = 3600.0  # the same while starting, compiling, or restoring
    config.watchdog.abort = False  # True: also end the process

    config.log_every = 50  # steps
    config.eval_every = 1000  # steps; 0: never
    config.eval_images = 1024  # 0: all validation images
    config.figure_every = 1000  # steps; 0: never
    config.figure_images = 8

    config.eval = ml_collections.ConfigDict()  # quick quality checks, if images have labels
    config.eval.knn_every = 0  # steps between kNN evaluations; 0: never
    config.eval.probe_every = 0  # steps between linear probes of frozen features; 0: never
    config.eval.feature = "cls"  # or mean (of the patch tokens)
    config.eval.knn_k = 20  # neighbors
    config.eval.train_images = 50_000  # labeled training images to use; 0: all

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1: all remaining
    config.mesh.fsdp = 1  # devices that split the parameters
    return config


def classify(config: ml_collections.ConfigDict) -> None:
    """Converts a pre-training recipe to classification, in place."""
    _without_decoder(config)
    del config.mask, config.target, config.eval
    config.task = "classify"
    config.init_weights = True  # False: use only the sizes and pixel statistics of init_from
    config.trainable = "all"  # or head; or last: `trainable_blocks`, final norm, and head
    config.trainable_blocks = 0.5  # 0.5: the MLP half of the last block
    config.model.num_classes = 0  # 0: as in the data
    config.model.drop_path = 0.0  # stochastic depth rate of the last block

    config.head = ml_collections.ConfigDict()
    config.head.pool = "cls"  # or mean (of the patch tokens)
    config.head.init_std = 0.02  # standard deviation of the initial weights
    config.head.batch_norm = False  # linear probing: normalization without scale and bias
    config.head.batch_norm_group = 0  # images sharing statistics; 0: the whole batch

    config.label_smoothing = 0.0  # target probability spread over all classes
    config.erase_prob = 0.0  # share of images with a randomly erased box
    config.mix = ml_collections.ConfigDict()
    config.mix.mixup = 0.0  # parameter of the Beta distribution; 0: off
    config.mix.cutmix = 0.0  # the same for CutMix
    config.mix.prob = 1.0  # share of groups that are mixed
    config.mix.switch_prob = 0.5  # probability of CutMix if both are on
    config.mix.group = 32  # images sharing one draw; the official batch per GPU

    config.optim.layer_decay = 1.0  # learning rate decay per block, from last to first
    config.optim.ema = 0.0  # decay of averaged weights, which are evaluated too; 0: off


def detect(config: ml_collections.ConfigDict) -> None:
    """Converts a pre-training recipe to detection and instance segmentation, in place."""
    _without_decoder(config)
    del config.mask, config.target, config.eval
    config.task = "detect"
    config.init_weights = True  # False: use only the sizes and pixel statistics of init_from
    config.model.num_classes = 0  # 0: as in the data
    config.model.drop_path = 0.0  # stochastic depth rate of the last block

    config.detector = ml_collections.ConfigDict()
    config.detector.backbone = "vitdet"  # or fpn, the protocol of the MAE paper
    config.detector.pretrain_size = (224, 224)  # of the position table; (0, 0): as in init_from
    config.detector.window = 14  # patches; four blocks attend globally
    config.detector.width = 256  # channels of pyramid and heads
    config.detector.hidden_dim = 1024  # of the box head
    config.detector.anchor_size = 32.0  # pixels, on the finest level
    config.detector.rpn_batch = 256  # anchors sampled per image
    config.detector.pre_nms = 2000  # anchors kept per level; half of it in evaluation
    config.detector.proposals = 1000  # kept per image
    config.detector.roi_batch = 512  # proposals sampled per image, up to a quarter positive
    config.detector.score_threshold = 0.05
    config.detector.detections = 100  # kept per image

    config.optim.layer_decay = 1.0  # learning rate decay per block, from last to first
    config.optim.decays = "vitdet"  # parameters with weight decay


def knn(config: ml_collections.ConfigDict) -> None:
    """Converts a pre-training recipe to kNN classification, which trains nothing; in place."""
    _without_decoder(config)
    del config.mask, config.target, config.optim
    config.task = "knn"
    config.epochs = 0.0
    config.eval_every = 0
    config.figure_every = 0


def tokenizer(config: ml_collections.ConfigDict) -> None:
    """Converts a pre-training recipe to a tokenizer, a discrete autoencoder; in place."""
    config.task = "tokenizer"
    config.tokenizer = ml_collections.ConfigDict()
    config.tokenizer.vocab_size = 8192  # number of codes
    config.tokenizer.hidden_dim = 256  # width of the first group, doubled in each one
    config.tokenizer.groups = 4  # a code covers a square of 2^(groups - 1) pixels
    config.tokenizer.blocks_per_group = 2
    config.tokenizer.temperature = (1.0, 1 / 16)  # Gumbel-softmax: initial, final
    config.tokenizer.kl_weight = 1.0  # of the KL divergence; 1: the ELBO


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


def own_labels(config: ml_collections.ConfigDict, setting: str) -> None:
    """Adapts a classification recipe to a folder of the user's images, one folder per class.

    Args:
      config: the recipe, changed in place.
      setting: "full"; or "quick", 300 updates after configs/folder.py:quick.
    """
    as_pretrained(config)
    by_images(config)
    config.init_from = "runs/folder" if setting == "full" else "runs/folder_quick"
    config.model.num_classes = 0
    config.data.source = "folder"
    config.checkpoint.keep_best = "eval/top1"  # RUN:best
    config.log_every = 10
    if setting == "quick":
        config.epochs = 0.0
        config.steps = 300
        config.batch_size = 64
        config.optim.warmup_epochs = 0.5


def check_setting(setting: str, *known: str) -> None:
    """Raises ValueError unless a recipe knows this setting (`--config=FILE:SETTING`).

    Each recipe with settings calls it itself: that is how they are found without running the file.
    """
    if setting not in known:
        raise ValueError(f"unknown setting {setting!r}: {' or '.join(known)}")


def _without_decoder(config: ml_collections.ConfigDict) -> None:
    for key in DECODER:
        del config.model[key]
