"""Scripts of the documentation run."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

from mae_jax import convert
from tests.parity import official

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
