"""Scripts of the documentation run."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

from mae_jax import convert
from mae_jax.train import throughput
from tests.helpers.processes import REPO
from tests.parity import official


def test_features_script(tmp_path):
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    weights = str(tmp_path / "weights")
    convert.save(convert.load(official.path("mae_tiny.safetensors"), hints=hints), weights)
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    command = [
        sys.executable,
        "docs/features.py",
        weights,
        f"{tmp_path}/*.png",
        f"{tmp_path}/out.png",
    ]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": REPO}
    )
    assert done.returncode == 0, done.stderr
    assert "features (3, 48) tokens (3, 64, 48) class token (3, 48)" in done.stdout
    assert done.stdout.count("is most like") == 3
    assert Image.open(tmp_path / "out.png").size == (4 * 100 + 4, 18 + 3 * 100 + 18)


def test_hours_in_the_multihost_page_follow_from_the_arithmetic():
    with open(os.path.join(REPO, "docs", "multihost.md"), encoding="utf-8") as file:
        table = file.read().split("| chip | peak TFLOP/s |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    names = {"TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}
    gflop = {"B": 58.7, "L": 124.5, "H": 291.4, "finetune": 369.3}
    work = [("B", 800), ("L", 800), ("H", 800), ("L", 1600), ("finetune", 50)]
    assert len(rows) == 6
    for chip, tera, *hours in rows:
        peak = throughput.PEAK_FLOPS[names.get(chip, chip if "TPU" in chip else f"NVIDIA {chip}")]
        assert float(tera) == peak / 1e12
        wanted = [
            round(epochs * 1_281_167 * gflop[kind] * 1e9 / (0.4 * peak) / 3600)
            for kind, epochs in work
        ]
        assert list(map(int, hours)) == wanted, chip
