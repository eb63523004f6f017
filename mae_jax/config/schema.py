"""Every key of a configuration: what it may be, what it means and how it is compared.

    python -m mae_jax.config.schema        the table of docs/configuration.md

A new key is one row here and one line with its default in configs/common.py. No imports of models
or data here, so that a mistyped value is answered before jax starts. The names that code looks up
elsewhere (sizes, masks, ...) are compared with the rows by tests.
"""

import dataclasses
from typing import Any, Literal

from mae_jax.config.rules import LARGEST, Bool, Choice, Float, Floats, Int, Place, Rule, Str

TASKS = ("pretrain", "classify", "knn", "tokenizer")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
      name: with dots.
      rule: what its value may be.
      meaning: for the documentation.
      tasks: those whose configurations need it; a recipe may have keys of other tasks, too.
      resume: whether a run may continue with another value. "harmless": it may, because the key
        changes what is written or how fast, not what is computed. "compared": it may not.
      added: for a key that came with a later version, the value that does what was done without it.
      only_with: (key, value); beside other values of that key this one means nothing.
      formerly: its name in earlier versions, which is still accepted.
      aliases: what users type who come from the official code, timm, Hugging Face or Lightning;
        refused with this key's name.
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
TRAINED = ("pretrain", "classify", "tokenizer")
MONITORED = ("pretrain", "knn")
CHANNELS = r"error|mean|repeat|select:\d{1,6}(,\d{1,6})*"
STEPS = "steps between two, 0: never"
OPEN, BY_SIZE = (-1,), "-1: by the number of images (docs/finetuning.md)"
INHERIT = "init_from"

# One row a key: name, rule, meaning, then what is special about it.
# fmt: off
ROWS = (
    # The run.
    Key("task", Choice(TASKS), "what is done"),
    Key("seed", Int(0, 2**32 - 1), "decides every random draw", aliases="random_seed"),
    Key("epochs", Float(also=OPEN), f"length of the run; {BY_SIZE}", aliases="max_epochs num_epochs num_train_epochs"),
    Key("steps", Int(), "length of the run in updates; 0: by `epochs`",
        aliases="max_steps num_steps total_steps"),
    Key("batch_size", Int(1, 2**24, also=OPEN),
        f"images of an update, on all devices; lowered for small sets; {BY_SIZE}",
        aliases="bs per_device_train_batch_size train_batch_size"),
    Key("grad_accum", Int(1, 2**24), "parts that a batch is worked through in", resume="harmless",
        aliases="accum_iter accumulate_grad_batches gradient_accumulation_steps"),
    Key("resume", Place(), "another run, or one of its steps, to continue in a new workdir",
        resume="harmless"),
    Key("init_from", Place(), "a run, or other weights, to begin with",
        resume="harmless", aliases="checkpoint ckpt finetune pretrained weights"),
    Key("init_channels", Str(CHANNELS, "error, mean, repeat or select:I,J,..."),
        "weights of other channels", resume="harmless", added="error"),
    Key("init_weights", Bool(), "False: take only sizes and pixel statistics from `init_from`",
        tasks=CLASSIFY, resume="harmless", added=True),
    Key("trainable", Choice(("all", "head", "last")), "what is trained", tasks=CLASSIFY),
    Key("trainable_blocks", Float(0, 1000), "of `last`: 0.5, or 1 to the number of blocks",
        tasks=CLASSIFY),
    Key("label_smoothing", Float(0, 1, below=True), "share of the target for all classes",
        tasks=CLASSIFY, aliases="smoothing"),
    Key("erase_prob", Float(0, 1, below=True), "share of images with an erased box",
        tasks=CLASSIFY, aliases="reprob"),
    # The network.
    Key("model.size", Choice(("Ti", "S", "B", "L", "H", "2B", INHERIT)),
        f"of the encoder; {INHERIT}: width, depth, heads and MLPs of those weights",
        aliases="arch model_size"),
    Key("model.image_size", Floats(1, 2**14, lengths=(2, 1), whole=True, also=((0, 0),)),
        "height and width; (0, 0): those of `init_from`",
        aliases="crop_size img_size input_size"),
    Key("model.patch_size", Floats(1, 2**14, lengths=(2, 1), whole=True, also=((0, 0),)),
        "height and width; (0, 0): those of `init_from`"),
    Key("model.channels", Int(0, 1024), "of the images; 0: those of `init_from`", aliases="in_chans num_channels"),
    Key("model.embed_dim", Int(0, 2**14), "width; 0: by `size`", aliases="dim hidden_size width"),
    Key("model.depth", Int(0, 1000), "blocks; 0: by `size`", aliases="layers num_layers"),
    Key("model.num_heads", Int(0, 2**14), "of attention; 0: by `size`", aliases="heads"),
    Key("model.mlp_ratio", Float(0, 64, above=True), "hidden width of the MLPs, in widths"),
    Key("model.dtype", Choice(("auto", "float32", "bfloat16")), "of the arithmetic",
        aliases="bf16 fp16 precision"),
    Key("model.attention", Choice(("xla", "cudnn")), "what computes it; cudnn: NVIDIA, bfloat16"),
    Key("model.remat", Choice(("none", "dots", "blocks")), "what is computed again to save memory",
        resume="harmless", added="none", aliases="gradient_checkpointing"),
    Key("model.decoder_embed_dim", Int(1, 2**14), "width of the decoder",
        tasks=PRETRAIN, aliases="decoder_dim"),
    Key("model.decoder_depth", Int(0, 1000), "blocks of the decoder; 0: a linear head",
        tasks=PRETRAIN),
    Key("model.decoder_num_heads", Int(1, 2**14), "of the decoder",
        tasks=PRETRAIN, aliases="decoder_heads"),
    Key("model.encoder_mask_tokens", Bool(),
        "the encoder sees hidden patches too, as a learned token", tasks=PRETRAIN, added=False),
    Key("model.num_classes", Int(), "checked against the data; 0: as the data",
        tasks=CLASSIFY, aliases="classes nb_classes"),
    Key("model.drop_path", Float(0, 1, below=True), "stochastic depth of the last block",
        tasks=CLASSIFY, aliases="drop_path_rate"),
    Key("head.pool", Choice(("cls", "mean")), "class token, or mean of the patch tokens",
        tasks=CLASSIFY),
    Key("head.init_std", Float(0, 1e3), "deviation of the head's weights", tasks=CLASSIFY),
    Key("head.batch_norm", Bool(), "normalize features before the head", tasks=CLASSIFY),
    Key("head.batch_norm_group", Int(0, 2**24),
        "rows sharing statistics, lowered to a divisor; 0: all", tasks=CLASSIFY),
    # What it learns.
    Key("mask.ratio", Float(0, 1, below=True), "share of hidden patches; some must be hidden",
        tasks=PRETRAIN),
    Key("mask.kind", Choice(("random", "block", "grid", "checkerboard"), extensible=True),
        "which patches are hidden", tasks=PRETRAIN),
    Key("target.kind", Choice(("pixel", "pca", "tokens", "hog"), extensible=True),
        "what is predicted", tasks=PRETRAIN),
    Key("target.normalize", Bool(), "pixel: each patch by its own mean and deviation",
        tasks=PRETRAIN, aliases="norm_pix_loss"),
    Key("target.components", Int(1), "pca: coefficients, at most as many as numbers of a patch",
        tasks=PRETRAIN, added=96, only_with=("target.kind", "pca")),
    Key("target.fit_images", Int(1), "pca: training images that it is learned from",
        tasks=PRETRAIN, added=4096, only_with=("target.kind", "pca")),
    Key("target.loss_on", Choice(("masked", "all")), "patches that the loss is taken on",
        tasks=PRETRAIN, added="masked"),
    Key("target.tokenizer", Place(), "tokens: a run of task tokenizer, or DALL-E's encoder.pkl",
        tasks=PRETRAIN, added="", only_with=("target.kind", "tokens")),
    Key("mix.mixup", Float(0, 1e3), "parameter of Beta; 0: off", tasks=CLASSIFY),
    Key("mix.cutmix", Float(0, 1e3), "parameter of Beta; 0: off", tasks=CLASSIFY),
    Key("mix.prob", Float(0, 1), "share of groups that are mixed", tasks=CLASSIFY),
    Key("mix.switch_prob", Float(0, 1), "share of CutMix where both are on", tasks=CLASSIFY),
    Key("mix.group", Int(1, 2**24),
        "rows sharing one draw, lowered to an even divisor of the batch", tasks=CLASSIFY),
    Key("tokenizer.vocab_size", Int(2, 2**16), "number of codes", tasks=TOKENIZER),
    Key("tokenizer.hidden_dim", Int(4, 2**12), "width of the first group, doubled in each",
        tasks=TOKENIZER),
    Key("tokenizer.groups", Int(1, 8), "a code stands for 2^(groups - 1) pixels of a side",
        tasks=TOKENIZER),
    Key("tokenizer.blocks_per_group", Int(1, 32), "residual blocks", tasks=TOKENIZER),
    Key("tokenizer.temperature", Floats(1e-3, 100, lengths=(2,)), "of relaxed codes: first, last",
        tasks=TOKENIZER),
    Key("tokenizer.kl_weight", Float(0, 1e3), "of the divergence from uniform codes; 1: the bound",
        tasks=TOKENIZER),
    # The images.
    Key("data.source", Choice(("shapes", "folder", "tfds")), "kind of data set"),
    Key("data.name", Str(), "tfds: the data set", aliases="dataset"),
    Key("data.root", Place(), "folder: directory or list file; tfds: data_dir",
        resume="harmless", aliases="data_dir data_path dir folder image_dir images path"),
    Key("data.split", Str(), "to train on"),
    Key("data.eval_split", Str(), "held out; empty: the source's validation split, or `holdout`",
        aliases="val_split validation_split"),
    Key("data.holdout", Int(also=OPEN),
        "training images held out without an evaluation split; at most half; -1: a tenth"),
    Key("data.num_train", Int(1, 10**8), "shapes: images to train on"),
    Key("data.num_eval", Int(0, 10**8), "shapes: held-out images"),
    Key("data.augment", Choice(("crop", "crop_once", "crop_fixed", "none")),
        "crops of training images"),
    Key("data.crop_scale", Floats(0, 1, above=True, lengths=(2,), ordered=True),
        "share of the area"),
    Key("data.crop_ratio", Floats(0.01, 100, lengths=(2,), ordered=True), "width / height",
        aliases="aspect_ratio"),
    Key("data.hflip", Bool(), "mirror half of the training images"),
    Key("data.color_jitter", Float(0, 10), "strength; 0: off", added=0.0),
    Key("data.randaug_magnitude", Float(0, 10), "RandAugment; 0: off", added=0.0),
    Key("data.randaug_std", Float(0, 10), "deviation of the magnitude", added=0.5),
    Key("data.mean", Floats(-1e30, 1e30, also=((),)),
        "of the pixels, for each channel; (): that of `init_from`"),
    Key("data.std", Floats(1e-30, 1e30, also=((),)),
        "of the pixels, for each channel; (): that of `init_from`"),
    Key("data.resizer", Choice(("auto", "pillow", "fast")),
        "auto: pillow to evaluate, fast to train", added="auto"),
    Key("data.resize_antialias", Bool(), "False is visibly aliased"),
    Key("data.exif_transpose", Bool(), "turn photos as their EXIF says"),
    Key("data.dtype", Choice(("uint8", "float32", INHERIT)),
        "of the pixels; float32: in their own units"),
    Key("data.max_bad_fraction", Float(0, 1), "unreadable share that stops the run (more than 10)",
        resume="harmless"),
    Key("data.storage_wait", Float(0, 1e7),
        "seconds to wait for unreadable storage, then save, stop", resume="harmless", added=300.0),
    Key("data.workers", Int(0, 1024), "decoding threads; 0: all cores",
        resume="harmless", aliases="num_workers"),
    Key("data.prefetch", Int(1, 1024), "batches prepared ahead", resume="harmless"),
    Key("data.cache", Choice(("none", "encoded", "decoded")), "what stays in memory",
        resume="harmless", added="none"),
    Key("data.cache_gb", Float(0, 1e6), "of each host; 0: half of what is available",
        resume="harmless", added=0.0),
    Key("data.on_device", Bool(), "keep small sets on the devices",
        added=False, formerly="data.resident"),
    # The optimizer.
    Key("optim.name", Choice(("adamw", "lars")), "the optimizer",
        tasks=TRAINED, added="adamw", aliases="opt optimizer"),
    Key("optim.base_lr", Float(0, 1e6), "learning rate per 256 images",
        tasks=TRAINED, aliases="blr learning_rate lr"),
    Key("optim.min_lr", Float(0, 1e6), "learning rate at the end", tasks=TRAINED),
    Key("optim.warmup_epochs", Float(also=OPEN),
        f"a tenth of the run if not shorter than it; {BY_SIZE}",
        tasks=TRAINED, aliases="warmup warmup_steps"),
    Key("optim.weight_decay", Float(0, 1e3), "decoupled", tasks=TRAINED, aliases="wd"),
    Key("optim.b1", Float(0, 1, below=True), "adamw: decay of the first moment", tasks=TRAINED),
    Key("optim.b2", Float(0, 1, below=True), "adamw: decay of the second moment", tasks=TRAINED),
    Key("optim.mu_dtype", Choice(("float32", "bfloat16")), "adamw: type of the first moment",
        tasks=TRAINED, added="float32"),
    Key("optim.momentum", Float(0, 1, below=True), "lars", tasks=TRAINED, added=0.9),
    Key("optim.grad_clip", Float(), "largest norm of the gradient; 0: off",
        tasks=TRAINED, aliases="clip_grad max_grad_norm"),
    Key("optim.layer_decay", Float(0, 1), "of the learning rate, block by block downwards",
        tasks=CLASSIFY),
    Key("optim.ema", Float(0, 1, below=True), "decay of an average of the weights; 0: none",
        tasks=CLASSIFY, aliases="ema_decay"),
    # What is measured and shown.
    Key("log_every", Int(1), "steps between lines",
        resume="harmless", aliases="log_freq logging_steps"),
    Key("eval_every", Int(also=OPEN), f"evaluations: {STEPS}, -1: 20 in a run",
        resume="harmless", aliases="eval_freq eval_steps"),
    Key("eval_images", Int(), "held-out images of an evaluation; 0: all", resume="harmless"),
    Key("figure_every", Int(also=OPEN), f"figures: {STEPS}, -1: 10 in a run",
        resume="harmless", formerly="picture_every"),
    Key("figure_images", Int(1, 1024), "images of a figure",
        resume="harmless", formerly="picture_images"),
    Key("eval.knn_every", Int(), f"kNN: {STEPS}", tasks=MONITORED, resume="harmless"),
    Key("eval.probe_every", Int(), f"linear classifier: {STEPS}",
        tasks=MONITORED, resume="harmless"),
    Key("eval.feature", Choice(("cls", "mean")), "class token, or mean of the patch tokens",
        tasks=MONITORED, resume="harmless"),
    Key("eval.knn_k", Int(1), "neighbors, at most as many as images",
        tasks=MONITORED, resume="harmless"),
    Key("eval.train_images", Int(), "labeled images to learn from; 0: all",
        tasks=MONITORED, resume="harmless"),
    # What is saved, and when a run ends early.
    Key("checkpoint.every_steps", Int(), "steps between saves; 0: not by steps",
        resume="harmless", aliases="save_every save_freq save_steps"),
    Key("checkpoint.every_minutes", Float(0, 1e6), "minutes between saves; 0: not by time",
        resume="harmless"),
    Key("checkpoint.keep", Int(1), "newest checkpoints that are kept", resume="harmless"),
    Key("checkpoint.keep_every", Int(), "steps whose multiples are kept permanently; 0: none",
        resume="harmless"),
    Key("checkpoint.max_failures", Int(1), "failed saves in a row that end the run",
        resume="harmless"),
    Key("nan_guard.max_skips", Int(1), "skipped updates in a row that end the run",
        resume="harmless"),
    Key("watchdog.seconds", Float(0, 1e7), "without a step that show all threads; 0: never",
        resume="harmless"),
    Key("watchdog.start_seconds", Float(0, 1e7), "the same until the first step; 0: never",
        resume="harmless"),
    Key("watchdog.abort", Bool(), "then also end the process", resume="harmless"),
    # The devices.
    Key("mesh.data", Int(1, 2**20, also=(-1,)), "devices that share a batch; -1: all that are left",
        resume="harmless"),
    Key("mesh.fsdp", Int(1, 2**20, also=(-1,)), "devices that share the parameters; -1: all left",
        resume="harmless"),
)
# fmt: on
KEYS = {key.name: key for key in ROWS}
GROUPS = sorted({name.split(".")[0] for name in KEYS if "." in name})
ADDED = {key.name: key.added for key in ROWS if key.added is not None}
FORMER_NAMES = {key.formerly: key.name for key in ROWS if key.formerly}
ALIASES = {alias: key.name for key in ROWS for alias in key.aliases.split()}


def current_name(key: str) -> str:
    """The present name of a key of this or an earlier version."""
    return FORMER_NAMES.get(key, key)


def keys_of(task: str) -> dict[str, Key]:
    """The keys that a configuration of `task` must have."""
    return {key.name: key for key in ROWS if task in key.tasks}


def markdown() -> str:
    """The table of docs/configuration.md."""
    lines = ["| key | may be | what it does | tasks |", "|---|---|---|---|"]
    for key in sorted(ROWS, key=lambda key: ("." in key.name, key.name)):
        where = "all" if key.tasks == TASKS else ", ".join(key.tasks)
        allowed = key.rule.allowed().replace(str(LARGEST), "2^31 - 1")
        lines.append(f"| `{key.name}` | {allowed} | {key.meaning} | {where} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
