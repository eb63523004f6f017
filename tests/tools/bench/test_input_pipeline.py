"""Benchmark of the input pipeline: its stages and its baseline."""

import json

import numpy as np
import pytest
from PIL import Image

from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS
from mae_jax.tools.bench import __main__ as bench
from mae_jax.tools.bench import input_pipeline
from tests.data.helpers import jpeg, picture
from tests.helpers import tiny_configs

STAGES = ["read", "decode", "augment", "batch", "to_device"]
RATES = ["images_per_s", "images_per_s_of_cpu_time"]


@pytest.fixture
def folder(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(picture(i, 30, 50)))
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    return tmp_path


def settings(folder):
    keys = {"source": "folder", "root": str(folder), "holdout": 2, "max_bad_fraction": 0.5}
    return {"batch_size": 4} | {f"data__{key}": value for key, value in keys.items()}


def test_bench_data_compares_with_pillow(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for i in range(8):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    assert (
        bench.main(
            ["data", *tiny_configs.flags(**settings(tmp_path)), "--against=pil", "--repeats=2"]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ours"]["images_per_s"] > 0 and result["speed_up_per_cpu_time"] > 0
    assert result["pil"].keys() == result["ours"].keys()


def test_every_stage_is_timed_by_clock_and_by_processor(folder, capsys):
    assert bench.main(["data", *tiny_configs.flags(**settings(folder)), "--repeats=2"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert list(result)[:6] == [*STAGES, "ours"]
    for stage in STAGES:
        assert list(result[stage]) == RATES and min(result[stage].values()) > 0
    assert result["ours"] == result["batch"] and "speed_up" not in result
    header, *rows = table[-3:]
    assert header.split() == [*STAGES, "ours"]
    assert [row.split()[0] for row in rows] == RATES


def test_a_stage_does_only_its_own_part(folder, monkeypatch):
    monkeypatch.setattr(input_pipeline, "IMAGES", 16)
    task = TASKS["pretrain"](tiny_configs.config(**settings(folder)), "")
    workloads = input_pipeline.Stages(task).workloads()
    (read, count), (decode, _), (augment, _) = (prepare(1) for prepare in workloads.values())
    assert count == 16
    encoded = [record.data for (record,) in read()]
    pixels, rows = decode(), augment()
    assert all(isinstance(data, bytes) and data[:2] == b"\xff\xd8" for data in encoded)
    assert {image.shape for image in pixels} == {(30, 50, 3)}
    assert {row["image"].shape for row in rows} == {(*task.data.image_size, 3)}
    again, _ = workloads["read"](2)
    assert [record.data for (record,) in again()] != encoded  # another round, other images


def test_pillow_needs_image_files():
    with pytest.raises(UsageError, match="--against=pil needs image files"):
        bench.main(["data", *tiny_configs.flags(), "--against=pil", "--repeats=1"])
