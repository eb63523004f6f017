"""Real recipes, scaled down to run in seconds on a CPU."""

import importlib
import json
import os
from typing import Any

import jax
import ml_collections

from configs import demo, tokenizer
from configs.detection import demo as detection_demo
from mae_jax.distributed import sharding
from mae_jax.runtime import preemption
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step

TIMING = ("images_per_s", "images_per_s_per_device", "data_wait_ms", "data_wait", "mfu")
# The same as flags of the command line.
CHANGES: dict[str, Any] = {
    "steps": 20,
    "batch_size": 16,
    "model.image_size": (16, 16),
    "model.patch_size": (4, 4),
    "model.embed_dim": 24,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.decoder_embed_dim": 16,
    "model.decoder_depth": 1,
    "model.decoder_num_heads": 2,
    "data.num_train": 96,  # six steps an epoch
    "data.num_eval": 20,
    "data.scenes": "cluttered",
    "data.workers": 2,
    "checkpoint.every_steps": 0,
    "checkpoint.every_minutes": 0.0,
    "log_every": 5,
    "eval_every": 0,
    "figure_every": 0,
    "figure_images": 3,
}
# configs/demo.py may change: these are the values that tests and stored results rely on.
PRETRAIN: dict[str, Any] = CHANGES | {
    "epochs": 1.0,
    "optim.base_lr": 6e-3,
    "optim.warmup_epochs": 0.1,
    "data.crop_scale": (0.2, 1.0),
    "data.cache": "none",
}
# Arguments of mae_jax.tools.study: two rows with sixty steps of pre-training only.
STUDY = [
    "--study=configs/ablations/mask_ratio.py",
    "--pretrain=configs/demo.py",
    "--stages=",
    "--rows=0.5,0.75",
    "--config.epochs=0",
    "--config.steps=60",
    "--config.optim.warmup_epochs=0",
    "--config.batch_size=8",
    "--config.data.num_train=64",
    "--config.data.num_eval=16",
    "--config.model.image_size=(32,32)",
    "--config.model.depth=1",
    "--config.model.decoder_depth=1",
    "--config.eval_every=60",
    "--config.figure_every=0",
    "--config.log_every=1",
    "--config.checkpoint.every_steps=10",
]


def config(**changes: Any) -> ml_collections.ConfigDict:
    """configs/demo.py, tiny; `changes` use `__` for a dot."""
    out = demo.get_config()
    out.update_from_flattened_dict(
        PRETRAIN | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return out


def classify_config(kind: str = "finetune", **changes: Any) -> ml_collections.ConfigDict:
    """configs/<kind>/demo.py, tiny; `changes` use `__` for a dot."""
    out = importlib.import_module(f"configs.{kind}.demo").get_config()
    small = {k: v for k, v in CHANGES.items() if "decoder" not in k}
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    out.update_from_flattened_dict(small | wanted)
    return out


def detect_config(**changes: Any) -> ml_collections.ConfigDict:
    """configs/detection/demo.py, tiny: a batch takes a fraction of a second."""
    out = detection_demo.get_config()
    small = {k: v for k, v in CHANGES.items() if "decoder" not in k} | {
        "steps": 12,
        "batch_size": 8,
        "init_from": "",
        "model.size": "Ti",
        "model.channels": 3,
        "model.image_size": (32, 32),
        "model.patch_size": (8, 8),
        "model.embed_dim": 16,
        "data.mean": (0.5, 0.5, 0.5),
        "data.std": (0.25, 0.25, 0.25),
        "data.dtype": "uint8",
        "data.shape_classes": 12,
        "data.max_objects": 4,
        "optim.base_lr": 0.03,
        "optim.layer_decay": 1.0,
        "data.num_train": 24,
        "data.num_eval": 13,
        "log_every": 1,
        "eval_images": 0,
        "detector.pretrain_size": (32, 32),
        "detector.window": 2,
        "detector.width": 8,
        "detector.hidden_dim": 16,
        "detector.anchor_size": 8.0,
        "detector.rpn_batch": 16,
        "detector.pre_nms": 16,
        "detector.proposals": 8,
        "detector.roi_batch": 8,
        "detector.detections": 5,
        "detector.score_threshold": 0.0,
    }
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    out.update_from_flattened_dict(small | wanted)
    return out


def tokenizer_config(**changes: Any) -> ml_collections.ConfigDict:
    """configs/tokenizer.py, tiny: 8 x 8 codes of 16; `changes` use `__` for a dot."""
    out = tokenizer.get_config()
    small = {k: v for k, v in CHANGES.items() if "decoder" not in k} | {
        "model.patch_size": (2, 2),
        "data.source": "shapes",
        "tokenizer.vocab_size": 16,
        "tokenizer.hidden_dim": 8,
        "tokenizer.groups": 2,
        "tokenizer.blocks_per_group": 1,
        "optim.base_lr": 0.1,
        "optim.warmup_epochs": 0.1,
    }
    wanted = {key.replace("__", "."): value for key, value in changes.items()}
    out.update_from_flattened_dict(small | wanted)
    return out


def flags(**changes: Any) -> list[str]:
    """The same as command-line flags of configs/demo.py."""
    values = PRETRAIN | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--config=configs/demo.py", *(f"--config.{k}={v}" for k, v in values.items())]


def one_step(kind: Any, config: Any) -> tuple[Any, Any]:
    """State of a task after its first step, and the metrics of that step."""
    task, mesh = kind(config, ""), sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=config.grad_accum)
    batches = task.train_batches(0)
    state, values = step(create_state(task, abstract), sharding.to_device(mesh, next(batches)))
    batches.close()
    return state, jax.device_get(values)


def stop_in_step(step: int) -> dict[str, Any]:
    """Arguments of `loop.run` with a request to stop that is made while a step is under way."""
    request = preemption.StopRequest()

    def before_step(now: int) -> None:
        request._requested |= now == step

    return {"stop": request, "before_step": before_step}


def metric_lines(workdir: Any, split: str = "train") -> list[dict[str, Any]]:
    """The metrics a run has logged so far, without those that depend on time."""
    if not os.path.exists(os.path.join(workdir, "metrics.jsonl")):
        return []
    with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [
        {k: v for k, v in line.items() if k not in TIMING}
        for line in lines
        if line["split"] == split
    ]
