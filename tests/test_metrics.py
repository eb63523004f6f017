"""What is written, and what survives a restart."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mae_jax import metrics


def test_lines_of_undone_steps_and_half_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "loss": 1.0}) for step in (5, 10, 15)]
    path.write_text("\n".join(lines) + '\n{"step": 20, "lo', encoding="utf-8")
    writer = metrics.MetricWriter(str(tmp_path), 10)
    writer.write(11, "train", {"loss": 0.5})
    writer.close()
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert steps == [5, 10, 11]


def test_a_run_that_begins_anew_begins_its_lines_anew(tmp_path):
    for _ in range(2):
        writer = metrics.MetricWriter(str(tmp_path), 0)
        writer.write(0, "eval", {"loss": 1.0})
        writer.close()
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_tensorboard_files_hold_scalars_and_pictures(tmp_path):
    writer = metrics.MetricWriter(str(tmp_path), 0)
    writer.write(3, "train", {"loss": 0.25})
    writer.write_image(3, "reconstruction", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data and b"reconstruction" in data


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.MetricWriter(str(tmp_path), 0, active=False)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA B200", 2250),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("cpu", None),
    ],
)
def test_peak_of_known_devices(kind, tera):
    peak = metrics.peak_flops(SimpleNamespace(device_kind=kind))
    assert peak == (None if tera is None else tera * 1e12)


def test_speed_leaves_pauses_out(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    watch = metrics.Stopwatch(batch_size=32, flops_per_image=1.0)
    for _ in range(4):
        clock[0] += 0.5
        watch.add_step(waited=0.1)
    clock[0] += 7.0
    watch.add_pause(7.0)
    report = watch.report()
    assert report["images_per_s"] == pytest.approx(4 * 32 / 2.0)
    assert report["data_wait_ms"] == pytest.approx(100)
    assert report["data_wait"] == pytest.approx(0.2)
    assert watch.window == pytest.approx((4, 2.0, 0.4))
    assert watch.report() == {}


def test_a_full_disk_does_not_end_a_run_and_a_broken_line_no_restart(tmp_path, monkeypatch, caplog):
    writer = metrics.MetricWriter(str(tmp_path), 0)
    writer.write(1, "train", {"loss": 1.0})
    real = writer._file
    writer._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    for step in (2, 3):
        writer.write(step, "train", {"loss": 1.0})
    assert caplog.text.count("No space left on device") == 1
    monkeypatch.setattr(writer, "_file", real)
    writer.write(4, "train", {"loss": 1.0})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text("\0" * 20 + "\n" + path.read_text() + '{"step": 5, "spl')
    metrics.MetricWriter(str(tmp_path), 4).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 4]
