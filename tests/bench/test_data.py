"""Speed of the input pipeline: what is measured, and against what."""

import json

import numpy as np
from PIL import Image

from mae_jax.tools import bench
from tests import tiny


def test_bench_data_compares_with_pillow(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for i in range(8):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    flags = tiny.flags(data__source="folder", data__root=tmp_path, data__holdout=2)
    assert bench.main(["data", *flags, "--against=pil", "--repeats=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ours"]["images_per_s"] > 0 and result["speed_up_per_cpu_time"] > 0
