"""The written metrics, and what is kept on a restart."""

import contextlib
import errno
import json
import multiprocessing
import os
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from mae_jax.runtime import disk
from mae_jax.train import event_file, metric_writer, record_file, throughput


def test_lines_of_undone_steps_and_half_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "loss": 1.0}) for step in (5, 10, 15)]
    path.write_text("\n".join(lines) + '\n{"step": 20, "lo', encoding="utf-8")
    writer = metric_writer.MetricWriter(str(tmp_path), 10)
    writer.write(11, "train", {"loss": 0.5})
    writer.close()
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert steps == [5, 10, 11]


def test_a_run_that_starts_over_rewrites_its_lines(tmp_path):
    for _ in range(2):
        writer = metric_writer.MetricWriter(str(tmp_path), 0)
        writer.write(0, "eval", {"loss": 1.0})
        writer.close()
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_tensorboard_files_contain_scalars_and_images(tmp_path):
    writer = metric_writer.MetricWriter(str(tmp_path), 0)
    writer.write(3, "train", {"loss": 0.25})
    writer.write_image(3, "reconstruction", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data and b"reconstruction" in data


def test_other_processes_write_nothing(tmp_path):
    writer = metric_writer.MetricWriter(str(tmp_path), 0, active=False)
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
    peak = throughput.peak_flops(SimpleNamespace(device_kind=kind))
    assert peak == (None if tera is None else tera * 1e12)


def test_speed_leaves_pauses_out(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    watch = throughput.ThroughputMeter(batch_size=32, flops_per_image=1.0)
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


def refuse(monkeypatch, number, taken=0):
    """Makes writes of record files fail after some bytes."""

    def fail(file, data):
        file.write(data[:taken])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(record_file, "_write_all", fail)


def events(folder):
    """(step, tag, value) of all event files, oldest first, parsed by the TFRecord specification."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            content, data = data[12 : 12 + size], data[16 + size :]
            assert len(content) == size
            event = event_pb2.Event.FromString(content)
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=os.strerror)
@pytest.mark.parametrize("taken", [0, 7])
def test_metrics_wait_for_a_disk_that_fails_and_none_is_lost(
    tmp_path, monkeypatch, caplog, number, taken
):
    caplog.set_level("INFO")
    writer = metric_writer.MetricWriter(str(tmp_path), 0)
    writer.write(1, "train", {"loss": 1.0})
    with monkeypatch.context() as failing:
        refuse(failing, number, taken)
        for step in (2, 3):
            writer.write(step, "train", {"loss": 1.0})
        assert [line["step"] for line in metric_writer.read(str(tmp_path))] == [1]
        assert events(tmp_path) == [(1, "train/loss", 1.0)]
        writer.secure()
    assert caplog.text.count(os.strerror(number)) == 1
    assert f"(disk {disk.mount_of(str(tmp_path))}" in caplog.text
    assert "written again" not in caplog.text
    writer.write(4, "train", {"loss": 0.5})
    assert caplog.text.count("metrics are written again") == 1
    writer.close()
    assert [line["step"] for line in metric_writer.read(str(tmp_path))] == [1, 2, 3, 4]
    wanted = [(step, "train/loss", 1.0) for step in (1, 2, 3)] + [(4, "train/loss", 0.5)]
    assert events(tmp_path) == wanted


def test_half_a_record_that_could_not_be_cut_off_is_cut_off_later(tmp_path, monkeypatch):
    file = record_file.RecordFile(str(tmp_path / "a"), b"first,")
    file.append(b"second,")
    with monkeypatch.context() as failing:
        refuse(failing, errno.EIO, taken=3)
        failing.setattr(record_file.contextlib, "suppress", broken_disk)
        with pytest.raises(OSError):
            file.append(b"third,")
        assert (tmp_path / "a").read_bytes() == b"first,second,thi"
    file.flush()
    assert (tmp_path / "a").read_bytes() == b"first,second,third,"


@contextlib.contextmanager
def broken_disk(kind):
    raise OSError(errno.EIO, "cannot be truncated")
    yield


def test_a_real_device_without_room_costs_only_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(record_file, "BUFFER_BYTES", 10)
    file = record_file.RecordFile("/dev/full", b"12345")
    for record, lost in ((b"67890", 0), (b"x", 1), (b"y", 2)):
        with pytest.raises(OSError, match="No space left"):
            file.append(record)
        assert file.lost == lost


def test_metrics_lost_at_the_end_are_reported(tmp_path, monkeypatch, caplog):
    writer = metric_writer.MetricWriter(str(tmp_path), 0)
    refuse(monkeypatch, errno.ENOSPC)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert f"the last metrics are not in {tmp_path}" in caplog.text


def test_writing_needs_no_thread_no_process_and_no_shared_memory(tmp_path, monkeypatch):
    def no(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device: /dev/shm")

    for name in ("Queue", "Lock", "SimpleQueue", "Process"):
        monkeypatch.setattr(multiprocessing, name, no)
    before = threading.active_count()
    writer = metric_writer.MetricWriter(str(tmp_path), 0)
    writer.write(1, "train", {"loss": 1.0})
    assert threading.active_count() == before
    assert events(tmp_path) == [(1, "train/loss", 1.0)]  # at once, without a flush
    writer.close()


def crc32c(data):
    """Castagnoli's checksum, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(value):
    """As TFRecord stores it."""
    return ((value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def test_checksums_are_those_of_tfrecord(tmp_path):
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    file = event_file.EventFile(str(tmp_path), purge_step=3)
    file.records.flush()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    types = []
    while data:
        size, sum_of_size = struct.unpack("<QI", data[:12])
        end = 12 + size
        content, (sum_of_content,) = data[12:end], struct.unpack("<I", data[end : end + 4])
        assert sum_of_size == masked(crc32c(data[:8])) and sum_of_content == masked(crc32c(content))
        data = data[end + 4 :]
        types.append(event_pb2.Event.FromString(content).WhichOneof("what"))
    assert types == ["file_version", "session_log"]


def test_a_broken_line_is_no_obstacle_to_a_restart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "split": "train"}\n'
    path.write_bytes(b"\0" * 20 + b"\n" + whole + b"\xff\xfe\n" + whole + b'{"step": 5, "spl')
    metric_writer.MetricWriter(str(tmp_path), 4).close()
    assert path.read_bytes() == 2 * whole


def test_a_restart_on_a_full_disk_cuts_its_lines_in_place(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "split": "train"}}\n' for step in range(1, 9)))
    monkeypatch.setattr(metric_writer.filesystem, "write", None)  # would need room for a copy
    metric_writer.MetricWriter(str(tmp_path), 4).close()
    assert [line["step"] for line in metric_writer.read(str(tmp_path))] == [1, 2, 3, 4]
