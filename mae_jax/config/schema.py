"""Every config key: allowed values, meaning, and how runs are compared.

    python -m mae_jax.config.schema        prints the table of docs/configuration.md

To add a key, add one row here and one line with its default to configs/common.py. This module
imports neither models nor data, so that invalid values are reported before jax starts. Tests check
the choices listed here against the names registered elsewhere (sizes, masks, ...).
"""

import dataclasses
from typing import Any, Literal

from mae_jax.config.rules import LARGEST, Bool, Choice, Float, Floats, Int, Place, Rule, Str

TASKS = ("pretrain", "classify", "detect", "knn", "tokenizer")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
      name: dotted name.
      rule: allowed values.
      meaning: text for the documentation.
      tasks: tasks that require the key; a recipe may also have keys of other tasks.
      resume: whether a run may continue with another value. "harmless": yes, since the key affects
        speed or output but not results. "compared": no.
      added: for a key added in a later version, the value with the behavior of earlier versions.
      only_with: (key, value); the key has no effect unless that key has that value.
      formerly: name in earlier versions, which is still accepted.
      aliases: names of this setting in the official code, timm, Hugging Face, or Lightning; these
        are rejected with a pointer to this key.
    """

    name: str
    rule: Rule
    meaning: str
    _: dataclasses.KW_ONLY
    tasks: tuple[str, ...] = TASKS
    resume: Literal["compared", "harmless"] = "compared"
    added: Any = None
    only_with: tuple[str, str] | None = None
    formerly: str = ""
    aliases: str = ""


PRETRAIN, CLASSIFY, TOKENIZER = ("pretrain",), ("classify",), ("tokenizer",)
DETECT, TRANSFER = ("detect",), ("classify", "detect")
TRAINED = ("pretrain", "classify", "detect", "tokenizer")
MONITORED = ("pretrain", "knn")
CHANNELS = r"error|mean|repeat|select:\d{1,6}(,\d{1,6})*"
AUTO, BY_IMAGES = (-1,), "-1: by the number of images (docs/finetuning.md)"
INHERIT = "init_from"

# One row per key: name, rule, meaning, then anything special.
# fmt: off
ROWS = (
    # The run.
    Key("task", Choice(TASKS), "what to train or evaluate"),
    Key("seed", Int(0, 2**32 - 1), "seed of all random numbers", aliases="random_seed"),
    Key("epochs", Float(also=AUTO), f"length of the run in epochs; {BY_IMAGES}",
        aliases="max_epochs num_epochs num_train_epochs"),
    Key("steps", Int(), "length of the run in updates; 0: use `epochs`",
        aliases="max_steps num_steps total_steps"),
    Key("batch_size", Int(0, 2**24, also=AUTO),
        f"images per update, over all devices; reduced for small data sets; {BY_IMAGES}; "
        "0: the largest that fits in memory",
        aliases="bs per_device_train_batch_size train_batch_size"),
    Key("grad_accum", Int(1, 2**24), "micro-batches per update", resume="harmless",
        aliases="accum_iter accumulate_grad_batches gradient_accumulation_steps"),
    Key("resume", Place(), "run, or one of its steps, to continue in a new workdir",
        resume="harmless"),
    Key("init_from", Place(), "run, or other weights, to initialize from", resume="harmless",
        aliases="checkpoint ckpt finetune pretrained weights"),
    Key("init_channels", Str(CHANNELS, "error, mean, repeat or select:I,J,..."),
        "how to adapt weights with other channels", resume="harmless", added="error"),
    Key("init_weights", Bool(), "False: use only the sizes and pixel statistics of `init_from`",
        tasks=TRANSFER, resume="harmless", added=True),
    Key("trainable", Choice(("all", "head", "last")), "which parameters are trained",
        tasks=CLASSIFY),
    Key("trainable_blocks", Float(0, 1000), "for `last`: 0.5, or 1 to the number of blocks",
        tasks=CLASSIFY),
    Key("label_smoothing", Float(0, 1, below=True), "target probability spread over all classes",
        tasks=CLASSIFY, aliases="smoothing"),
    Key("erase_prob", Float(0, 1, below=True), "share of images with a randomly erased box",
        tasks=CLASSIFY, aliases="reprob"),
    # The network.
    Key("model.size", Choice(("Ti", "S", "B", "L", "H", "2B", INHERIT)),
        f"size of the encoder; {INHERIT}: width, depth, heads and MLPs of those weights",
        aliases="arch model_size"),
    Key("model.image_size", Floats(1, 2**14, lengths=(2, 1), whole=True, also=((0, 0),)),
        "height and width; (0, 0): as in `init_from`",
        aliases="crop_size img_size input_size"),
    Key("model.patch_size", Floats(1, 2**14, lengths=(2, 1), whole=True, also=((0, 0),)),
        "height and width; (0, 0): as in `init_from`"),
    Key("model.channels", Int(0, 1024), "image channels; 0: as in `init_from`",
        aliases="in_chans num_channels"),
    Key("model.embed_dim", Int(0, 2**14), "width; 0: set by `size`",
        aliases="dim hidden_size"),
    Key("model.depth", Int(0, 1000), "number of blocks; 0: set by `size`",
        aliases="layers num_layers"),
    Key("model.num_heads", Int(0, 2**14), "attention heads; 0: set by `size`", aliases="heads"),
    Key("model.mlp_ratio", Float(0, 64, above=True),
        "hidden width of the MLPs, relative to the width"),
    Key("model.dtype", Choice(("auto", "float32", "bfloat16")), "precision of the computation",
        aliases="bf16 fp16 precision"),
    Key("model.attention", Choice(("xla", "cudnn")), "implementation; cudnn: NVIDIA, bfloat16"),
    Key("model.remat", Choice(("none", "dots", "blocks")), "activations recomputed to save memory",
        resume="harmless", added="none", aliases="gradient_checkpointing"),
    Key("model.decoder_embed_dim", Int(1, 2**14), "width of the decoder",
        tasks=PRETRAIN, aliases="decoder_dim"),
    Key("model.decoder_depth", Int(0, 1000), "decoder blocks; 0: a linear head", tasks=PRETRAIN),
    Key("model.decoder_num_heads", Int(1, 2**14), "attention heads of the decoder", tasks=PRETRAIN,
        aliases="decoder_heads"),
    Key("model.encoder_mask_tokens", Bool(),
        "feed masked patches to the encoder, as a learned token", tasks=PRETRAIN, added=False),
    Key("model.num_classes", Int(), "number of classes; 0: as in the data",
        tasks=TRANSFER, aliases="classes nb_classes"),
    Key("model.drop_path", Float(0, 1, below=True), "stochastic depth rate of the last block",
        tasks=TRANSFER, aliases="drop_path_rate"),
    Key("head.pool", Choice(("cls", "mean")), "class token, or mean of the patch tokens",
        tasks=CLASSIFY),
    Key("head.init_std", Float(0, 1e3), "standard deviation of the head's initial weights",
        tasks=CLASSIFY),
    Key("head.batch_norm", Bool(), "normalize features before the head", tasks=CLASSIFY),
    Key("head.batch_norm_group", Int(0, 2**24),
        "images sharing statistics, reduced to a divisor; 0: all", tasks=CLASSIFY),
    # Masking, targets, and regularization.
    Key("mask.ratio", Float(0, 1, below=True),
        "share of masked patches; at least one must be masked", tasks=PRETRAIN),
    Key("mask.kind", Choice(("random", "block", "grid", "checkerboard"), extensible=True),
        "which patches are masked", tasks=PRETRAIN),
    Key("target.kind", Choice(("pixel", "pca", "tokens", "hog"), extensible=True),
        "prediction target", tasks=PRETRAIN),
    Key("target.normalize", Bool(),
        "pixel: normalize each patch by its mean and standard deviation", tasks=PRETRAIN,
        aliases="norm_pix_loss"),
    Key("target.components", Int(1), "pca: coefficients, at most the number of values in a patch",
        tasks=PRETRAIN, added=96, only_with=("target.kind", "pca")),
    Key("target.fit_images", Int(1), "pca: training images used to fit it", tasks=PRETRAIN,
        added=4096, only_with=("target.kind", "pca")),
    Key("target.loss_on", Choice(("masked", "all")), "patches that contribute to the loss",
        tasks=PRETRAIN, added="masked"),
    Key("target.tokenizer", Place(), "tokens: a run of task `tokenizer`, or DALL-E's encoder.pkl",
        tasks=PRETRAIN, added="", only_with=("target.kind", "tokens")),
    Key("mix.mixup", Float(0, 1e3), "mixup: parameter of the Beta distribution; 0: off",
        tasks=CLASSIFY),
    Key("mix.cutmix", Float(0, 1e3), "CutMix: parameter of the Beta distribution; 0: off",
        tasks=CLASSIFY),
    Key("mix.prob", Float(0, 1), "share of groups that are mixed", tasks=CLASSIFY),
    Key("mix.switch_prob", Float(0, 1), "probability of CutMix if both are on", tasks=CLASSIFY),
    Key("mix.group", Int(1, 2**24),
        "images sharing one draw, reduced to an even divisor of the batch", tasks=CLASSIFY),
    Key("tokenizer.vocab_size", Int(2, 2**16), "number of codes", tasks=TOKENIZER),
    Key("tokenizer.hidden_dim", Int(4, 2**12),
        "width of the first group, doubled in each following one", tasks=TOKENIZER),
    Key("tokenizer.groups", Int(1, 8), "a code covers 2^(groups - 1) x 2^(groups - 1) pixels",
        tasks=TOKENIZER),
    Key("tokenizer.blocks_per_group", Int(1, 32), "residual blocks per group", tasks=TOKENIZER),
    Key("tokenizer.temperature", Floats(1e-3, 100, lengths=(2,)),
        "temperature of the relaxed codes: initial, final", tasks=TOKENIZER),
    Key("tokenizer.kl_weight", Float(0, 1e3),
        "weight of the KL divergence from uniform codes; 1: the ELBO", tasks=TOKENIZER),
    # Detection.
    Key("detector.backbone", Choice(("vitdet", "fpn")),
        "simple feature pyramid, or the paper's own protocol", tasks=DETECT),
    Key("detector.pretrain_size", Floats(1, 2**14, lengths=(2, 1), whole=True, also=((0, 0),)),
        "image size whose position table is kept and resized; (0, 0): as in `init_from`",
        tasks=DETECT),
    Key("detector.window", Int(1, 1024), "side of attention windows, in patches", tasks=DETECT),
    Key("detector.width", Int(4, 2**12), "channels of pyramid and heads", tasks=DETECT),
    Key("detector.hidden_dim", Int(4, 2**14), "hidden width of the box head", tasks=DETECT),
    Key("detector.anchor_size", Float(1, 2**12),
        "side of the smallest anchors in pixels, doubled in each level", tasks=DETECT),
    Key("detector.rpn_batch", Int(2, 2**16), "anchors sampled per image", tasks=DETECT),
    Key("detector.pre_nms", Int(2, 2**16),
        "anchors kept per level before suppression; half of it in evaluation", tasks=DETECT),
    Key("detector.proposals", Int(1, 2**16), "proposals kept per image", tasks=DETECT),
    Key("detector.roi_batch", Int(4, 2**16), "proposals sampled per image", tasks=DETECT),
    Key("detector.score_threshold", Float(0, 1), "detections need a higher score",
        tasks=DETECT, resume="harmless"),
    Key("detector.detections", Int(1, 2**12), "detections kept per image", tasks=DETECT,
        resume="harmless"),
    # The data.
    Key("data.source", Choice(("shapes", "folder", "coco", "tfds")), "type of data set"),
    Key("data.name", Str(), "tfds: name of the data set", aliases="dataset"),
    Key("data.root", Place(),
        "folder: directory or list file; coco: folder with annotations.json; tfds: data_dir",
        resume="harmless",
        aliases="data_dir data_path dir folder image_dir images path"),
    Key("data.split", Str(), "training split"),
    Key("data.eval_split", Str(), "validation split; empty: the source's own, or `holdout`",
        aliases="val_split validation_split"),
    Key("data.holdout", Int(also=AUTO),
        "training images held out if there is no validation split; at most half; -1: a tenth"),
    Key("data.num_train", Int(1, 10**8), "shapes: training images"),
    Key("data.num_eval", Int(0, 10**8), "shapes: validation images"),
    Key("data.scenes", Choice(("cluttered", "plain")),
        "shapes: overlapping patterned objects, or one large object", added="cluttered"),
    Key("data.shape_classes", Int(2, 12), "shapes: number of classes", added=12),
    Key("data.augment", Choice(("crop", "crop_once", "crop_fixed", "none")),
        "how training images are cropped"),
    Key("data.crop_scale", Floats(0, 1, above=True, lengths=(2,), ordered=True),
        "crop area relative to the image"),
    Key("data.crop_ratio", Floats(0.01, 100, lengths=(2,), ordered=True),
        "aspect ratio of crops, width / height", aliases="aspect_ratio"),
    Key("data.hflip", Bool(), "flip half of the training images horizontally"),
    Key("data.scale_jitter", Floats(0.01, 100, lengths=(2,), ordered=True),
        "detect: size of training images, relative to the largest that fits", added=(0.1, 2.0)),
    Key("data.max_objects", Int(1, 10_000),
        "detect: objects per training image; the largest, if there are more", added=100),
    Key("data.color_jitter", Float(0, 10), "color jitter strength; 0: off", added=0.0),
    Key("data.randaug_magnitude", Float(0, 10), "RandAugment magnitude; 0: off", added=0.0),
    Key("data.randaug_std", Float(0, 10), "standard deviation of the magnitude", added=0.5),
    Key("data.mean", Floats(-1e30, 1e30, also=((),)),
        "pixel mean of each channel; (): as in `init_from`"),
    Key("data.std", Floats(1e-30, 1e30, also=((),)),
        "pixel standard deviation of each channel; (): as in `init_from`"),
    Key("data.resizer", Choice(("auto", "pillow", "fast")),
        "auto: pillow for evaluation, fast for training", added="auto"),
    Key("data.resize_antialias", Bool(), "False: visibly aliased"),
    Key("data.exif_transpose", Bool(), "rotate photos according to their EXIF data"),
    Key("data.dtype", Choice(("uint8", "float32", INHERIT)),
        "pixel type; float32: keep the units of the data"),
    Key("data.max_bad_fraction", Float(0, 1),
        "unreadable share that stops the run (if more than 10 images)", resume="harmless"),
    Key("data.storage_wait", Float(0, 1e7),
        "seconds to wait for unavailable storage before saving and stopping", resume="harmless",
        added=300.0),
    Key("data.workers", Int(0, 1024), "decoding threads; 0: one per core", resume="harmless",
        aliases="num_workers"),
    Key("data.prefetch", Int(1, 1024), "batches prepared in advance", resume="harmless"),
    Key("data.cache", Choice(("none", "encoded", "decoded")), "images kept in host memory",
        resume="harmless", added="none"),
    Key("data.cache_gb", Float(0, 1e6),
        "cache size per host in GB; 0: half of the available memory", resume="harmless", added=0.0),
    Key("data.on_device", Bool(), "keep a small data set in device memory", added=False,
        formerly="data.resident"),
    # The optimizer.
    Key("optim.name", Choice(("adamw", "lars")), "optimizer", tasks=TRAINED, added="adamw",
        aliases="opt optimizer"),
    Key("optim.base_lr", Float(0, 1e6), "learning rate per 256 images of the batch", tasks=TRAINED,
        aliases="blr learning_rate lr"),
    Key("optim.min_lr", Float(0, 1e6), "final learning rate", tasks=TRAINED),
    Key("optim.warmup_epochs", Float(also=AUTO),
        f"warmup; a tenth of the run if it is shorter than this; {BY_IMAGES}",
        tasks=TRAINED, aliases="warmup warmup_steps"),
    Key("optim.schedule", Choice(("cosine", "steps", "linear")), "decay of the learning rate",
        tasks=TRAINED, added="cosine", aliases="lr_scheduler lr_schedule"),
    Key("optim.milestones", Floats(0, 1, lengths=(1, 2, 3, 4), ordered=True),
        "steps: fractions of the run at which the learning rate drops tenfold", tasks=TRAINED,
        added=(8 / 9, 26 / 27), only_with=("optim.schedule", "steps")),
    Key("optim.warmup_start", Float(0, 1), "first learning rate, relative to the peak",
        tasks=TRAINED, added=0.0),
    Key("optim.decays", Choice(("weights", "vitdet", "all")),
        "parameters with weight decay: no biases, norms, and positions; as released; all",
        tasks=DETECT),
    Key("optim.weight_decay", Float(0, 1e3), "decoupled weight decay", tasks=TRAINED, aliases="wd"),
    Key("optim.b1", Float(0, 1, below=True), "adamw: decay of the first moment", tasks=TRAINED),
    Key("optim.b2", Float(0, 1, below=True), "adamw: decay of the second moment", tasks=TRAINED),
    Key("optim.mu_dtype", Choice(("float32", "bfloat16")), "adamw: precision of the first moment",
        tasks=TRAINED, added="float32"),
    Key("optim.momentum", Float(0, 1, below=True), "lars: momentum", tasks=TRAINED, added=0.9),
    Key("optim.grad_clip", Float(), "maximum norm of the gradient; 0: off", tasks=TRAINED,
        aliases="clip_grad max_grad_norm"),
    Key("optim.layer_decay", Float(0, 1),
        "learning rate decay per block, from the last to the first", tasks=TRANSFER),
    Key("optim.ema", Float(0, 1, below=True), "decay of the moving average of the weights; 0: off",
        tasks=CLASSIFY, aliases="ema_decay"),
    # Logging and evaluation.
    Key("log_every", Int(1), "steps between log lines", resume="harmless",
        aliases="log_freq logging_steps"),
    Key("eval_every", Int(also=AUTO), "steps between evaluations; 0: never; -1: 20 in all",
        resume="harmless", aliases="eval_freq eval_steps"),
    Key("eval_images", Int(), "validation images per evaluation; 0: all", resume="harmless"),
    Key("figure_every", Int(also=AUTO), "steps between figures; 0: never; -1: 10 in all",
        resume="harmless", formerly="picture_every"),
    Key("figure_images", Int(1, 1024), "images per figure", resume="harmless",
        formerly="picture_images"),
    Key("eval.knn_every", Int(), "steps between kNN evaluations; 0: never", tasks=MONITORED,
        resume="harmless"),
    Key("eval.probe_every", Int(), "steps between linear-probe evaluations; 0: never",
        tasks=MONITORED, resume="harmless"),
    Key("eval.feature", Choice(("cls", "mean")), "class token, or mean of the patch tokens",
        tasks=MONITORED, resume="harmless"),
    Key("eval.knn_k", Int(1), "number of neighbors, at most the number of images", tasks=MONITORED,
        resume="harmless"),
    Key("eval.train_images", Int(), "labeled training images to use; 0: all", tasks=MONITORED,
        resume="harmless"),
    # Checkpoints and failures.
    Key("checkpoint.every_steps", Int(), "steps between saves; 0: off", resume="harmless",
        aliases="save_every save_freq save_steps"),
    Key("checkpoint.every_minutes", Float(0, 1e6), "minutes between saves; 0: off",
        resume="harmless"),
    Key("checkpoint.keep", Int(1), "number of recent checkpoints to keep", resume="harmless"),
    Key("checkpoint.keep_every", Int(),
        "keep checkpoints at multiples of this step permanently; 0: off", resume="harmless"),
    Key("checkpoint.keep_best", Str(r"([A-Za-z0-9_]+/[A-Za-z0-9_]+)?", "SPLIT/METRIC, or empty"),
        "keep the best checkpoint by this metric, such as eval/top1; empty: off",
        resume="harmless", added="", aliases="monitor metric_for_best_model"),
    Key("checkpoint.max_failures", Int(1), "consecutive failed saves that end the run",
        resume="harmless"),
    Key("nan_guard.max_skips", Int(1), "consecutive skipped updates that end the run",
        resume="harmless"),
    Key("watchdog.seconds", Float(0, 1e7),
        "seconds without a step before stacks are reported; 0: never", resume="harmless"),
    Key("watchdog.start_seconds", Float(0, 1e7), "the same before the first step; 0: never",
        resume="harmless"),
    Key("watchdog.abort", Bool(), "end the process after the report", resume="harmless"),
    # The devices.
    Key("mesh.data", Int(1, 2**20, also=(-1,)), "devices that split the batch; -1: all remaining",
        resume="harmless"),
    Key("mesh.fsdp", Int(1, 2**20, also=(-1,)),
        "devices that split the parameters; -1: all remaining", resume="harmless"),
)
# fmt: on
KEYS = {key.name: key for key in ROWS}
GROUPS = sorted({name.split(".")[0] for name in KEYS if "." in name})
ADDED = {  # as in JSON: `diff.flatten`
    key.name: list(key.added) if isinstance(key.added, tuple) else key.added
    for key in ROWS
    if key.added is not None
}
FORMER_NAMES = {key.formerly: key.name for key in ROWS if key.formerly}
ALIASES = {alias: key.name for key in ROWS for alias in key.aliases.split()}


def current_name(key: str) -> str:
    """The current name of a key of this or an earlier version."""
    return FORMER_NAMES.get(key, key)


def keys_of(task: str) -> dict[str, Key]:
    """The keys that a configuration of `task` must have."""
    return {key.name: key for key in ROWS if task in key.tasks}


def markdown() -> str:
    """The table of docs/configuration.md."""
    lines = ["| key | allowed values | meaning | tasks |", "|---|---|---|---|"]
    for key in sorted(ROWS, key=lambda key: ("." in key.name, key.name)):
        where = "all" if key.tasks == TASKS else ", ".join(key.tasks)
        allowed = key.rule.allowed().replace(str(LARGEST), "2^31 - 1")
        lines.append(f"| `{key.name}` | {allowed} | {key.meaning} | {where} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
