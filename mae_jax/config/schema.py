"""Every key of a configuration: what it means and what it may be.

    python -m mae_jax.config.schema        the table of docs/configuration.md

No imports of models or data here, so that a mistyped value is answered before jax starts. The names
that code looks up elsewhere (sizes, samplers, ...) are compared with it by tests.
"""

from mae_jax.config.rules import LARGEST, Bool, Choice, Float, Floats, Int, Place, Rule, Str

STEPS = "steps between two, 0: never"
# What every task has.
COMMON: dict[str, Rule] = {
    "task": Choice("what is done", ("pretrain", "classify", "knn", "tokenizer")),
    "seed": Int("decides every random draw", 0, 2**32 - 1),
    "epochs": Float("length of the run"),
    "steps": Int("length of the run in updates; 0: by `epochs`"),
    "batch_size": Int("images of an update, on all devices; lowered for small sets", 1, 2**24),
    "grad_accum": Int("parts that a batch is worked through in", 1, 2**24),
    "resume": Place("another run, or one of its steps, to continue in a new workdir"),
    "init_from": Place("a run, or other weights, to begin with"),
    "init_channels": Str(
        "weights of other channels",
        r"error|mean|repeat|select:\d{1,6}(,\d{1,6})*",
        "error, mean, repeat or select:I,J,...",
    ),
    "model.size": Choice("of the encoder", ("Ti", "S", "B", "L", "H", "2B")),
    "model.image_size": Floats("height and width", 1, 2**14, lengths=(2, 1), whole=True),
    "model.patch_size": Floats("height and width", 1, 2**14, lengths=(2, 1), whole=True),
    "model.channels": Int("of the images", 1, 1024),
    "model.embed_dim": Int("width; 0: by `size`", 0, 2**14),
    "model.depth": Int("blocks; 0: by `size`", 0, 1000),
    "model.num_heads": Int("of attention; 0: by `size`", 0, 2**14),
    "model.mlp_ratio": Float("hidden width of the MLPs, in widths", 0, 64, above=True),
    "model.dtype": Choice("of the arithmetic", ("auto", "float32", "bfloat16")),
    "model.attention": Choice("what computes it; cudnn: NVIDIA, bfloat16", ("xla", "cudnn")),
    "model.remat": Choice("what is computed again to save memory", ("none", "dots", "blocks")),
    "data.source": Choice("kind of data set", ("shapes", "folder", "tfds")),
    "data.name": Str("tfds: the data set"),
    "data.root": Place("folder: directory or list file; tfds: data_dir"),
    "data.split": Str("to train on"),
    "data.eval_split": Str("held out; empty: the source's validation split, or `holdout`"),
    "data.holdout": Int("training images held out without an evaluation split; at most half"),
    "data.num_train": Int("shapes: images to train on", 1, 10**8),
    "data.num_eval": Int("shapes: held-out images", 0, 10**8),
    "data.augment": Choice("crops of training images", ("crop", "crop_once", "crop_fixed", "none")),
    "data.crop_scale": Floats("share of the area", 0, 1, above=True, lengths=(2,), ordered=True),
    "data.crop_ratio": Floats("width / height", 0.01, 100, lengths=(2,), ordered=True),
    "data.hflip": Bool("mirror half of the training images"),
    "data.color_jitter": Float("strength; 0: off", 0, 10),
    "data.randaug_magnitude": Float("RandAugment; 0: off", 0, 10),
    "data.randaug_std": Float("deviation of the magnitude", 0, 10),
    "data.mean": Floats("of the pixels, for each channel", -1e30, 1e30),
    "data.std": Floats("of the pixels, for each channel", 1e-30, 1e30),
    "data.resizer": Choice("auto: pillow to evaluate, fast to train", ("auto", "pillow", "fast")),
    "data.resize_antialias": Bool("False is visibly aliased"),
    "data.exif_transpose": Bool("turn photos as their EXIF says"),
    "data.dtype": Choice("of the pixels; float32: in their own units", ("uint8", "float32")),
    "data.max_bad_fraction": Float("unreadable share that stops the run (more than 10)", 0, 1),
    "data.storage_wait": Float("seconds to wait for unreadable storage, then save, stop", 0, 1e7),
    "data.workers": Int("decoding threads; 0: all cores", 0, 1024),
    "data.prefetch": Int("batches prepared ahead", 1, 1024),
    "data.cache": Choice("what stays in memory", ("none", "encoded", "decoded")),
    "data.cache_gb": Float("of each host; 0: half of what is available", 0, 1e6),
    "data.resident": Bool("keep small sets on the devices"),
    "checkpoint.every_steps": Int("steps between saves; 0: not by steps"),
    "checkpoint.every_minutes": Float("minutes between saves; 0: not by time", 0, 1e6),
    "checkpoint.keep": Int("newest checkpoints that are kept", 1),
    "checkpoint.keep_every": Int("steps whose multiples are kept for ever; 0: none"),
    "checkpoint.max_failures": Int("failed saves in a row that end the run", 1),
    "nan_guard.max_skips": Int("skipped updates in a row that end the run", 1),
    "watchdog.seconds": Float("without a step that show all threads; 0: never", 0, 1e7),
    "watchdog.start_seconds": Float("the same until the first step; 0: never", 0, 1e7),
    "watchdog.abort": Bool("then also end the process"),
    "log_every": Int("steps between lines", 1),
    "eval_every": Int(f"evaluations: {STEPS}"),
    "eval_images": Int("held-out images of an evaluation; 0: all"),
    "picture_every": Int(f"pictures: {STEPS}"),
    "picture_images": Int("images of a picture", 1, 1024),
    "mesh.data": Int("devices that share a batch; -1: all that are left", 1, 2**20, (-1,)),
    "mesh.fsdp": Int("devices that share the parameters; -1: all left", 1, 2**20, (-1,)),
}
OPTIM: dict[str, Rule] = {
    "optim.name": Choice("the optimiser", ("adamw", "lars")),
    "optim.base_lr": Float("learning rate per 256 images", 0, 1e6),
    "optim.min_lr": Float("learning rate at the end", 0, 1e6),
    "optim.warmup_epochs": Float("a tenth of the run if not shorter than it"),
    "optim.weight_decay": Float("decoupled", 0, 1e3),
    "optim.b1": Float("adamw: decay of the first moment", 0, 1, below=True),
    "optim.b2": Float("adamw: decay of the second moment", 0, 1, below=True),
    "optim.mu_dtype": Choice("adamw: type of the first moment", ("float32", "bfloat16")),
    "optim.momentum": Float("lars", 0, 1, below=True),
    "optim.grad_clip": Float("largest norm of the gradient; 0: off"),
}
MONITOR: dict[str, Rule] = {
    "eval.knn_every": Int(f"kNN: {STEPS}"),
    "eval.probe_every": Int(f"linear classifier: {STEPS}"),
    "eval.feature": Choice("class token, or mean of the patch tokens", ("cls", "mean")),
    "eval.knn_k": Int("neighbours, at most as many as images", 1),
    "eval.train_images": Int("labelled images to learn from; 0: all"),
}
PRETRAIN: dict[str, Rule] = {
    "model.decoder_embed_dim": Int("width of the decoder", 1, 2**14),
    "model.decoder_depth": Int("blocks of the decoder; 0: a linear head", 0, 1000),
    "model.decoder_num_heads": Int("of the decoder", 1, 2**14),
    "model.encoder_mask_tokens": Bool("the encoder sees hidden patches too, as a learned token"),
    "mask.ratio": Float("share of hidden patches; some must be hidden", 0, 1, below=True),
    "mask.kind": Choice(
        "which patches are hidden", ("random", "block", "grid", "checkerboard"), extensible=True
    ),
    "target.kind": Choice("what is predicted", ("pixel", "pca", "tokens", "hog"), extensible=True),
    "target.normalize": Bool("pixel: each patch by its own mean and deviation"),
    "target.components": Int("pca: coefficients, at most as many as numbers of a patch", 1),
    "target.fit_images": Int("pca: training images that it is learnt from", 1),
    "target.loss_on": Choice("patches that the loss is taken on", ("masked", "all")),
    "target.tokenizer": Place("tokens: a run of task tokenizer, or DALL-E's encoder.pkl"),
}
TOKENIZER: dict[str, Rule] = {
    "tokenizer.vocab_size": Int("number of codes", 2, 2**16),
    "tokenizer.hidden_dim": Int("width of the first group, doubled in each", 4, 2**12),
    "tokenizer.groups": Int("a code stands for 2^(groups - 1) pixels of a side", 1, 8),
    "tokenizer.blocks_per_group": Int("residual blocks", 1, 32),
    "tokenizer.temperature": Floats("of relaxed codes: first, last", 1e-3, 100, lengths=(2,)),
    "tokenizer.kl_weight": Float("of the divergence from uniform codes; 1: the bound", 0, 1e3),
}
CLASSIFY: dict[str, Rule] = {
    "trainable": Choice("what is trained", ("all", "head", "last")),
    "trainable_blocks": Float("of `last`: 0.5, or 1 to the number of blocks", 0, 1000),
    "model.num_classes": Int("checked against the data; 0: as the data"),
    "model.drop_path": Float("stochastic depth of the last block", 0, 1, below=True),
    "head.pool": Choice("class token, or mean of the patch tokens", ("cls", "mean")),
    "head.init_std": Float("deviation of the head's weights", 0, 1e3),
    "head.batch_norm": Bool("normalise features before the head"),
    "head.batch_norm_group": Int("rows sharing statistics, lowered to a divisor; 0: all", 0, 2**24),
    "label_smoothing": Float("share of the target for all classes", 0, 1, below=True),
    "erase_prob": Float("share of images with an erased box", 0, 1, below=True),
    "mix.mixup": Float("parameter of Beta; 0: off", 0, 1e3),
    "mix.cutmix": Float("parameter of Beta; 0: off", 0, 1e3),
    "mix.prob": Float("share of groups that are mixed", 0, 1),
    "mix.switch_prob": Float("share of CutMix where both are on", 0, 1),
    "mix.group": Int("rows sharing one draw, lowered to an even divisor of the batch", 1, 2**24),
    "optim.layer_decay": Float("of the learning rate, block by block downwards", 0, 1),
    "optim.ema": Float("decay of an average of the weights; 0: none", 0, 1, below=True),
}
# The keys of each task; a recipe may have those of another, too.
NEEDED: dict[str, dict[str, Rule]] = {
    "pretrain": COMMON | PRETRAIN | OPTIM | MONITOR,
    "classify": COMMON | CLASSIFY | OPTIM,
    "knn": COMMON | MONITOR,
    "tokenizer": COMMON | TOKENIZER | OPTIM,
}
# What people type who come from other programs: the official code, timm, Hugging Face, Lightning.
OTHER_NAMES = {
    "accum_iter": "grad_accum",
    "accumulate_grad_batches": "grad_accum",
    "arch": "model.size",
    "aspect_ratio": "data.crop_ratio",
    "bf16": "model.dtype",
    "blr": "optim.base_lr",
    "bs": "batch_size",
    "checkpoint": "init_from",
    "ckpt": "init_from",
    "classes": "model.num_classes",
    "clip_grad": "optim.grad_clip",
    "crop_size": "model.image_size",
    "data_dir": "data.root",
    "data_path": "data.root",
    "dataset": "data.name",
    "decoder_dim": "model.decoder_embed_dim",
    "decoder_heads": "model.decoder_num_heads",
    "dim": "model.embed_dim",
    "dir": "data.root",
    "drop_path_rate": "model.drop_path",
    "ema_decay": "optim.ema",
    "eval_freq": "eval_every",
    "eval_steps": "eval_every",
    "finetune": "init_from",
    "folder": "data.root",
    "fp16": "model.dtype",
    "gradient_accumulation_steps": "grad_accum",
    "gradient_checkpointing": "model.remat",
    "heads": "model.num_heads",
    "hidden_size": "model.embed_dim",
    "image_dir": "data.root",
    "images": "data.root",
    "img_size": "model.image_size",
    "in_chans": "model.channels",
    "input_size": "model.image_size",
    "layers": "model.depth",
    "learning_rate": "optim.base_lr",
    "log_freq": "log_every",
    "logging_steps": "log_every",
    "lr": "optim.base_lr",
    "max_epochs": "epochs",
    "max_grad_norm": "optim.grad_clip",
    "max_steps": "steps",
    "model_size": "model.size",
    "nb_classes": "model.num_classes",
    "norm_pix_loss": "target.normalize",
    "num_channels": "model.channels",
    "num_epochs": "epochs",
    "num_layers": "model.depth",
    "num_steps": "steps",
    "num_train_epochs": "epochs",
    "num_workers": "data.workers",
    "opt": "optim.name",
    "optimizer": "optim.name",
    "path": "data.root",
    "per_device_train_batch_size": "batch_size",
    "precision": "model.dtype",
    "pretrained": "init_from",
    "random_seed": "seed",
    "reprob": "erase_prob",
    "save_every": "checkpoint.every_steps",
    "save_freq": "checkpoint.every_steps",
    "save_steps": "checkpoint.every_steps",
    "smoothing": "label_smoothing",
    "total_steps": "steps",
    "train_batch_size": "batch_size",
    "val_split": "data.eval_split",
    "validation_split": "data.eval_split",
    "warmup": "optim.warmup_epochs",
    "warmup_steps": "optim.warmup_epochs",
    "wd": "optim.weight_decay",
    "weights": "init_from",
    "width": "model.embed_dim",
}
RULES: dict[str, Rule] = COMMON | PRETRAIN | OPTIM | MONITOR | CLASSIFY | TOKENIZER
GROUPS = sorted({key.split(".")[0] for key in RULES if "." in key})
# Keys that may differ when a run continues: they change what is written, not what is computed.
HARMLESS = (
    "checkpoint",
    "nan_guard",
    "watchdog",
    "log_every",
    "eval_every",
    "eval_images",
    "eval",
    "picture_every",
    "picture_images",
    "mesh",
    "grad_accum",
    "model.remat",
    "resume",
    "init_from",
    "init_channels",
    "data.root",
    "data.workers",
    "data.prefetch",
    "data.cache",
    "data.cache_gb",
    "data.max_bad_fraction",
    "data.storage_wait",
)
# Keys that came with later versions, and the value that does what was done without them.
LATER = {
    "data.cache": "none",
    "data.cache_gb": 0.0,
    "data.color_jitter": 0.0,
    "data.randaug_magnitude": 0.0,
    "data.randaug_std": 0.5,
    "data.resizer": "auto",
    "data.storage_wait": 300.0,
    "data.resident": False,  # not harmless: sums are rounded otherwise, so pixels may differ by 1
    "init_channels": "error",
    "model.encoder_mask_tokens": False,
    "model.remat": "none",
    "optim.mu_dtype": "float32",
    "optim.name": "adamw",
    "optim.momentum": 0.9,
    "target.components": 96,
    "target.fit_images": 4096,
    "target.loss_on": "masked",
    "target.tokenizer": "",
}
# Keys that mean something beside one value of another alone.
ONLY_WITH = {
    "target.components": ("target.kind", "pca"),
    "target.fit_images": ("target.kind", "pca"),
    "target.tokenizer": ("target.kind", "tokens"),
}


def markdown() -> str:
    """The table for people."""
    lines = ["| key | may be | what it does | tasks |", "|---|---|---|---|"]
    for key in sorted(RULES, key=lambda key: ("." in key, key)):
        rule = RULES[key]
        tasks = [task for task, keys in NEEDED.items() if key in keys]
        where = "all" if len(tasks) == len(NEEDED) else ", ".join(tasks)
        allowed = rule.allowed().replace(str(LARGEST), "2^31 - 1")
        lines.append(f"| `{key}` | {allowed} | {rule.meaning} | {where} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
