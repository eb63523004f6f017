"""Every key of a configuration: what it means and what it may be.

    python -m mae_jax.config_keys        the table of docs/configuration.md

No imports of models or data here, so that a mistyped value is answered before jax starts. The names
that code looks up elsewhere (sizes, samplers, ...) are compared with it by tests.
"""

from mae_jax.config_rules import LARGEST, Choice, Flag, Number, Numbers, Place, Rule, Text, Whole

STEPS = "steps between two, 0: never"

# What every task has.
COMMON: dict[str, Rule] = {
    "task": Choice("what is done", ("pretrain", "classify", "knn", "tokenizer")),
    "seed": Whole("decides every random draw", 0, 2**32 - 1),
    "epochs": Number("length of the run"),
    "steps": Whole("length of the run in updates; 0: by `epochs`"),
    "batch_size": Whole("images of an update, on all devices; lowered for small sets", 1, 2**24),
    "grad_accum": Whole("parts that a batch is worked through in", 1, 2**24),
    "resume": Place("another run, or one of its steps, to continue in a new workdir"),
    "init_from": Place("a run, or other weights, to begin with"),
    "init_channels": Text(
        "weights of other channels",
        r"error|mean|repeat|select:\d{1,6}(,\d{1,6})*",
        "error, mean, repeat or select:I,J,...",
    ),
    "model.size": Choice("of the encoder", ("Ti", "S", "B", "L", "H", "2B")),
    "model.image_size": Numbers("height and width", 1, 2**14, lengths=(2, 1), whole=True),
    "model.patch_size": Numbers("height and width", 1, 2**14, lengths=(2, 1), whole=True),
    "model.channels": Whole("of the images", 1, 1024),
    "model.embed_dim": Whole("width; 0: by `size`", 0, 2**14),
    "model.depth": Whole("blocks; 0: by `size`", 0, 1000),
    "model.num_heads": Whole("of attention; 0: by `size`", 0, 2**14),
    "model.mlp_ratio": Number("hidden width of the MLPs, in widths", 0, 64, above=True),
    "model.dtype": Choice("of the arithmetic", ("auto", "float32", "bfloat16")),
    "model.attention": Choice("what computes it; cudnn: NVIDIA, bfloat16", ("xla", "cudnn")),
    "model.remat": Choice("what is computed again to save memory", ("none", "dots", "blocks")),
    "data.source": Choice("kind of data set", ("shapes", "folder", "tfds")),
    "data.name": Text("tfds: the data set"),
    "data.root": Place("folder: directory or list file; tfds: data_dir"),
    "data.split": Text("to train on"),
    "data.eval_split": Text("held out; empty: the source's validation split, or `holdout`"),
    "data.holdout": Whole("training images held out without an evaluation split; at most half"),
    "data.num_train": Whole("shapes: images to train on", 1, 10**8),
    "data.num_eval": Whole("shapes: held-out images", 0, 10**8),
    "data.augment": Choice("crops of training images", ("crop", "crop_once", "crop_fixed", "none")),
    "data.crop_scale": Numbers("share of the area", 0, 1, above=True, lengths=(2,), ordered=True),
    "data.crop_ratio": Numbers("width / height", 0.01, 100, lengths=(2,), ordered=True),
    "data.hflip": Flag("mirror half of the training images"),
    "data.color_jitter": Number("strength; 0: off", 0, 10),
    "data.randaug_magnitude": Number("RandAugment; 0: off", 0, 10),
    "data.randaug_std": Number("deviation of the magnitude", 0, 10),
    "data.mean": Numbers("of the pixels, for each channel", -1e30, 1e30),
    "data.std": Numbers("of the pixels, for each channel", 1e-30, 1e30),
    "data.resizer": Choice("auto: pillow to evaluate, fast to train", ("auto", "pillow", "fast")),
    "data.resize_antialias": Flag("False is visibly aliased"),
    "data.exif_transpose": Flag("turn photos as their EXIF says"),
    "data.dtype": Choice("of the pixels; float32: in their own units", ("uint8", "float32")),
    "data.max_bad_fraction": Number("unreadable share that stops the run (more than 10)", 0, 1),
    "data.storage_wait": Number("seconds to wait for unreadable storage, then save, stop", 0, 1e7),
    "data.workers": Whole("decoding threads; 0: all cores", 0, 1024),
    "data.prefetch": Whole("batches prepared ahead", 1, 1024),
    "data.cache": Choice("what stays in memory", ("none", "encoded", "decoded")),
    "data.cache_gb": Number("of each host; 0: half of what is available", 0, 1e6),
    "data.resident": Flag("keep small sets on the devices"),
    "checkpoint.every_steps": Whole("steps between saves; 0: not by steps"),
    "checkpoint.every_minutes": Number("minutes between saves; 0: not by time", 0, 1e6),
    "checkpoint.keep": Whole("newest checkpoints that are kept", 1),
    "checkpoint.keep_every": Whole("steps whose multiples are kept for ever; 0: none"),
    "checkpoint.max_failures": Whole("failed saves in a row that end the run", 1),
    "nan_guard.max_skips": Whole("skipped updates in a row that end the run", 1),
    "watchdog.seconds": Number("without a step that show all threads; 0: never", 0, 1e7),
    "watchdog.start_seconds": Number("the same until the first step; 0: never", 0, 1e7),
    "watchdog.abort": Flag("then also end the process"),
    "log_every": Whole("steps between lines", 1),
    "eval_every": Whole(f"evaluations: {STEPS}"),
    "eval_images": Whole("held-out images of an evaluation; 0: all"),
    "picture_every": Whole(f"pictures: {STEPS}"),
    "picture_images": Whole("images of a picture", 1, 1024),
    "mesh.data": Whole("devices that share a batch; -1: all that are left", 1, 2**20, (-1,)),
    "mesh.fsdp": Whole("devices that share the parameters; -1: all left", 1, 2**20, (-1,)),
}

OPTIM: dict[str, Rule] = {
    "optim.name": Choice("the optimiser", ("adamw", "lars")),
    "optim.base_lr": Number("learning rate per 256 images", 0, 1e6),
    "optim.min_lr": Number("learning rate at the end", 0, 1e6),
    "optim.warmup_epochs": Number("a tenth of the run if not shorter than it"),
    "optim.weight_decay": Number("decoupled", 0, 1e3),
    "optim.b1": Number("adamw: decay of the first moment", 0, 1, below=True),
    "optim.b2": Number("adamw: decay of the second moment", 0, 1, below=True),
    "optim.mu_dtype": Choice("adamw: type of the first moment", ("float32", "bfloat16")),
    "optim.momentum": Number("lars", 0, 1, below=True),
    "optim.grad_clip": Number("largest norm of the gradient; 0: off"),
}

MONITOR: dict[str, Rule] = {
    "eval.knn_every": Whole(f"kNN: {STEPS}"),
    "eval.probe_every": Whole(f"linear classifier: {STEPS}"),
    "eval.feature": Choice("class token, or mean of the patch tokens", ("cls", "mean")),
    "eval.knn_k": Whole("neighbours, at most as many as images", 1),
    "eval.train_images": Whole("labelled images to learn from; 0: all"),
}

PRETRAIN: dict[str, Rule] = {
    "model.decoder_embed_dim": Whole("width of the decoder", 1, 2**14),
    "model.decoder_depth": Whole("blocks of the decoder; 0: a linear head", 0, 1000),
    "model.decoder_num_heads": Whole("of the decoder", 1, 2**14),
    "model.encoder_mask_tokens": Flag("the encoder sees hidden patches too, as a learned token"),
    "mask.ratio": Number("share of hidden patches; some must be hidden", 0, 1, below=True),
    "mask.kind": Choice(
        "which patches are hidden", ("random", "block", "grid", "checkerboard"), extensible=True
    ),
    "target.kind": Choice("what is predicted", ("pixel", "pca", "tokens", "hog"), extensible=True),
    "target.normalize": Flag("pixel: each patch by its own mean and deviation"),
    "target.components": Whole("pca: coefficients, at most as many as numbers of a patch", 1),
    "target.fit_images": Whole("pca: training images that it is learnt from", 1),
    "target.loss_on": Choice("patches that the loss is taken on", ("masked", "all")),
    "target.tokenizer": Place("tokens: a run of task tokenizer, or DALL-E's encoder.pkl"),
}

TOKENIZER: dict[str, Rule] = {
    "tokenizer.vocab_size": Whole("number of codes", 2, 2**16),
    "tokenizer.hidden_dim": Whole("width of the first group, doubled in each", 4, 2**12),
    "tokenizer.groups": Whole("a code stands for 2^(groups - 1) pixels of a side", 1, 8),
    "tokenizer.blocks_per_group": Whole("residual blocks", 1, 32),
    "tokenizer.temperature": Numbers("of relaxed codes: first, last", 1e-3, 100, lengths=(2,)),
    "tokenizer.kl_weight": Number("of the divergence from uniform codes; 1: the bound", 0, 1e3),
}

CLASSIFY: dict[str, Rule] = {
    "trainable": Choice("what is trained", ("all", "head", "last")),
    "trainable_blocks": Number("of `last`: 0.5, or 1 to the number of blocks", 0, 1000),
    "model.num_classes": Whole("checked against the data; 0: as the data"),
    "model.drop_path": Number("stochastic depth of the last block", 0, 1, below=True),
    "head.pool": Choice("class token, or mean of the patch tokens", ("cls", "mean")),
    "head.init_std": Number("deviation of the head's weights", 0, 1e3),
    "head.batch_norm": Flag("normalise features before the head"),
    "head.batch_norm_group": Whole(
        "rows sharing statistics, lowered to a divisor; 0: all", 0, 2**24
    ),
    "label_smoothing": Number("share of the target for all classes", 0, 1, below=True),
    "erase_prob": Number("share of images with an erased box", 0, 1, below=True),
    "mix.mixup": Number("parameter of Beta; 0: off", 0, 1e3),
    "mix.cutmix": Number("parameter of Beta; 0: off", 0, 1e3),
    "mix.prob": Number("share of groups that are mixed", 0, 1),
    "mix.switch_prob": Number("share of CutMix where both are on", 0, 1),
    "mix.group": Whole("rows sharing one draw, lowered to an even divisor of the batch", 1, 2**24),
    "optim.layer_decay": Number("of the learning rate, block by block downwards", 0, 1),
    "optim.ema": Number("decay of an average of the weights; 0: none", 0, 1, below=True),
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
