"""From a folder in COCO's format to a detector that has learned its images by heart."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from mae_jax.data.sources.shapes import ShapesSource
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO

IMAGES, SIDE = 20, 64
CHANGES = {
    "steps": 400,
    "batch_size": 4,
    "init_from": "",
    "model.size": "Ti",
    "model.channels": 3,
    "model.num_heads": 4,
    "model.image_size": (SIDE, SIDE),
    "model.patch_size": (8, 8),
    "model.embed_dim": 64,
    "model.depth": 2,
    "detector.pretrain_size": (SIDE, SIDE),
    "detector.window": 4,
    "detector.width": 32,
    "detector.hidden_dim": 128,
    "detector.anchor_size": 16.0,
    "detector.rpn_batch": 64,
    "detector.pre_nms": 100,
    "detector.proposals": 32,
    "detector.roi_batch": 24,
    "detector.detections": 10,
    "data.source": "coco",
    "data.mean": (0.5, 0.5, 0.5),
    "data.std": (0.25, 0.25, 0.25),
    "data.dtype": "uint8",
    "data.scale_jitter": (1.0, 1.0),
    "data.hflip": False,
    "data.max_objects": 8,
    "optim.base_lr": 0.064,  # 1e-3 for a batch of 4
    "optim.warmup_epochs": 10.0,
    "optim.weight_decay": 0.0,
    "optim.layer_decay": 1.0,
    "checkpoint.keep_best": "",
    "eval_every": 400,
    "figure_every": 0,
    "log_every": 50,
}


def write_images(root):
    """The same images to train on and to evaluate on, with their annotations."""
    size = (SIDE - 13, SIDE - 13)
    source = ShapesSource(
        "train", start=0, count=IMAGES, image_size=size, channels=3, num_classes=3, objects=True
    )
    content = source.coco_json(range(IMAGES))
    for entry, record in zip(content["images"], source.read(range(IMAGES)), strict=True):
        entry["file_name"] = f"{entry['id']}.png"
        for part in ("train", "val"):
            os.makedirs(root / part / "images", exist_ok=True)
            Image.fromarray(record.data).save(root / part / "images" / entry["file_name"])
    for part in ("train", "val"):
        (root / part / "annotations.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_twenty_images_are_learned_by_heart(tmp_path):
    write_images(tmp_path / "set")
    values = CHANGES | {"data.root": str(tmp_path / "set")}
    command = [sys.executable, "-m", "mae_jax.main", "--config=configs/detection/demo.py"]
    command += [f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{key}={value}" for key, value in values.items()]
    # Compiled with optimizations: the program runs many times.
    done = subprocess.run(
        command, cwd=REPO, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = tiny_configs.metric_lines(tmp_path / "run", "eval")[-1]
    assert metrics["count"] == IMAGES
    assert metrics["box_ap50"] > 0.9 and metrics["mask_ap50"] > 0.9, metrics
