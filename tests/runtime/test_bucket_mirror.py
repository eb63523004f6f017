"""Metrics of a run in a bucket."""

import os

import numpy as np

from mae_jax.runtime import bucket_mirror
from mae_jax.train import metric_writer

RUN = "gs://bucket/run"


def test_on_a_disk_nothing_is_copied(tmp_path):
    place = bucket_mirror.BucketMirror(str(tmp_path), "a")
    assert place.folder == str(tmp_path) and not place.copies
    place.copy()
    place.close()
    assert os.listdir(tmp_path) == []


def test_what_was_written_is_in_the_bucket_before_a_checkpoint_and_at_the_end(gcs):
    writer = metric_writer.MetricWriter(RUN, 0)
    writer.write(1, "train", {"loss": 1.0})
    assert gcs.names("bucket") == []
    writer.secure()
    assert [line["step"] for line in metric_writer.read(RUN)] == [1]
    writer.write(2, "train", {"loss": 0.5})
    place = writer._mirror.folder
    writer.close()
    assert [line["step"] for line in metric_writer.read(RUN)] == [1, 2]
    (board,) = [name for name in gcs.names("bucket") if "tensorboard" in name]
    assert b"train/loss" in gcs.read("bucket", board)
    assert not os.path.exists(place)
    again = metric_writer.MetricWriter(RUN, 1)  # continues after step 1
    again.write(2, "train", {"loss": 0.25})
    again.close()
    assert [(line["step"], line["loss"]) for line in metric_writer.read(RUN)] == [
        (1, 1.0),
        (2, 0.25),
    ]


def test_it_is_copied_now_and_then_by_itself(gcs, monkeypatch):
    monkeypatch.setattr(bucket_mirror, "COPY_SECONDS", 0.05)
    writer = metric_writer.MetricWriter(RUN, 0)
    writer.write(1, "train", {"loss": 1.0})
    while "run/metrics.jsonl" not in gcs.names("bucket"):
        pass
    writer.close()


def test_a_bucket_out_of_reach_ends_no_run_and_is_told_once(gcs, caplog):
    writer = metric_writer.MetricWriter(RUN, 0)
    gcs.refuse("WRITE", "", 403)
    for step in (1, 2):
        writer.write(step, "train", {"loss": 1.0})
        writer.secure()
    assert caplog.text.count(f"cannot be copied to {RUN}") == 1
    gcs.refuse()
    writer.close()
    assert [line["step"] for line in metric_writer.read(RUN)] == [1, 2]


def test_what_cannot_be_copied_at_the_end_stays_on_the_disk(gcs, caplog):
    writer = metric_writer.MetricWriter(RUN, 0)
    gcs.refuse("WRITE", "", 403)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    place = writer._mirror.folder
    assert f"not be copied to {RUN}; they stay in {place}" in caplog.text
    assert [line["step"] for line in metric_writer.read(place)] == [1]


def test_a_file_with_many_pictures_is_not_copied_again_and_again(gcs, monkeypatch):
    monkeypatch.setattr(metric_writer, "BOARD_BYTES", 1000)
    writer = metric_writer.MetricWriter(RUN, 0)
    for step in range(3):
        writer.write_image(step, "picture", np.zeros((20, 20, 3), np.uint8))
        writer.secure()
    writer.close()
    boards = [name for name in gcs.names("bucket") if "tensorboard" in name]
    assert len(boards) == 4
