"""Storage that is unavailable for a while is waited for; a single lost file is not."""

import contextlib
import errno
import logging
import os
import threading
import time

import numpy as np
import pytest

from mae_jax.data import eval_batches, make_sources, storage, train_batches
from mae_jax.data.sources.cache import Budget, Cached
from mae_jax.data.sources.scan import scan_folder
from mae_jax.data.storage import StorageWait, patiently
from mae_jax.runtime.errors import DataMissing, StorageUnavailable, UsageError
from tests.data.helpers import MemorySource, jpeg, picture

GOOD = [jpeg(picture(i)) for i in range(40)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01,))
    monkeypatch.setattr(storage, "SLICE", 0.01)


class FailingSource(MemorySource):
    """Reads fail as `error` says: a function of the example and of the number of reads so far."""

    classes: list[str] | None = None

    def __init__(self, error, data=GOOD):
        super().__init__(data)
        self.error, self.reads = error, 0

    def read(self, indices):
        self.reads += 1
        number = self.error(int(indices[0]), self.reads)
        if number:
            raise OSError(number, os.strerror(number))
        return super().read(indices)


def run(source, make=train_batches, steps=5, **config):
    """Some batches and their iterator."""
    more = {"seed": 0} if make is train_batches else {}
    iterator = make(
        source,
        data_config={"workers": 2, "storage_wait": 60.0, **config},
        image_size=(8, 8),
        channels=3,
        batch_size=8,
        **more,
    )
    return [next(iterator) for _ in range(steps)], iterator


def test_closing_does_not_wait_for_storage():
    """At the end of a run nobody waits for batches that were to be read ahead."""
    away = threading.Event()
    source = FailingSource(lambda *_: errno.EIO if away.is_set() else 0)
    _, batches = run(source, steps=1, storage_wait=1000.0)
    away.set()

    def read_on():
        with contextlib.suppress(StorageUnavailable, StopIteration):
            while True:
                next(batches)

    threading.Thread(target=read_on, daemon=True).start()
    while not batches._loader.storage.waiting:
        time.sleep(0.01)
    closing = threading.Thread(target=batches.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert np.array_equal(a[name], b[name]), name


@pytest.mark.parametrize("make", [train_batches, eval_batches])
@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT]
)
def test_the_batches_are_those_without_an_outage(number, make, caplog):
    away = FailingSource(lambda _, reads: number if 20 < reads < 90 else 0)
    with caplog.at_level(logging.INFO):
        ours, iterator = run(away, make)
    assert_equal(ours, run(MemorySource(GOOD), make)[0])
    assert iterator.bad_count == 0 and away.reads > 90
    lines = [r.getMessage() for r in caplog.records if "storage" in r.getMessage()]
    assert len(lines) == 2, lines
    assert "cannot read memory#" in lines[0] and os.strerror(number) in lines[0]
    assert "waiting for it, up to 60 s" in lines[0] and "can be read again after" in lines[1]


def test_a_lost_file_among_good_ones_is_bad_and_replaced_as_a_damaged_one():
    lost = FailingSource(lambda index, _: errno.EIO if index == 3 else 0)
    ours, iterator = run(lost)
    assert iterator.bad_count == 1
    damaged = [b"" if i == 3 else data for i, data in enumerate(GOOD)]
    assert_equal(ours, run(MemorySource(damaged))[0])


def test_an_image_that_reads_well_again_is_bad_no_more(caplog):
    back = threading.Event()
    source = FailingSource(lambda index, _: errno.ENOENT if index == 3 and not back.is_set() else 0)
    _, iterator = run(source)
    assert iterator.bad_count == 1
    back.set()
    with caplog.at_level(logging.INFO):
        for _ in range(8):  # beyond the batches read ahead, and another epoch
            next(iterator)
    assert iterator.bad_count == 0
    assert "can be read again: memory#3" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO])
def test_more_lost_files_than_are_tolerated_are_an_outage(number):
    source = FailingSource(lambda index, _: number if index % 2 else 0)
    with pytest.raises(StorageUnavailable, match="did not come back within 1 s: memory#"):
        run(source, storage_wait=1.0)


def test_cached_records_tell_nothing_about_the_storage():
    away = threading.Event()
    source = FailingSource(lambda *_: errno.ENOENT if away.is_set() else 0)
    cached = Cached(source, Budget(7 * len(GOOD[0])), change=lambda record: record)
    _, iterator = run(cached, storage_wait=1.0)
    away.set()
    with pytest.raises(StorageUnavailable):
        for _ in range(20):
            next(iterator)
    assert iterator.bad_count == 0


def test_waiting_ends_at_once_when_a_stop_is_requested():
    asked = threading.Event()
    source = FailingSource(lambda *_: errno.ESTALE)
    threading.Timer(0.3, asked.set).start()
    began = time.monotonic()
    with storage.ends_when(asked.is_set), pytest.raises(StorageUnavailable, match="stopped while"):
        run(source, eval_batches)
    assert time.monotonic() - began < 30  # of 60
    assert not storage.is_waited_for()


def test_a_long_wait_is_logged_less_and_less_often(caplog, monkeypatch):
    monkeypatch.setattr(storage, "QUIET", 0.1)
    until = time.monotonic() + 1.0

    def read():
        if time.monotonic() < until:
            raise OSError(errno.EIO, "broken")

    with caplog.at_level(logging.INFO):
        StorageWait(60).read(read, what="x", lost=lambda _: False)
    assert 2 <= len(caplog.records) <= 6  # after 0, 0.1, 0.3, 0.7 s; and the end


def test_errors_of_a_decoder_are_not_waited_for():
    def broken():
        raise OSError("broken data stream")  # Pillow's; has no number

    with pytest.raises(OSError, match="data stream"):
        StorageWait(60).read(broken, what="x", lost=lambda _: pytest.fail("asked"))


def folder(root, classes=2):
    for i, data in enumerate(GOOD[:8]):
        place = root / f"class{i % classes}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.jpg").write_bytes(data)
    return {"source": "folder", "root": str(root)}


def sources(config, **options):
    return make_sources(config, image_size=(8, 8), channels=3, workdir=None, **options)


@pytest.mark.parametrize("gone", ["moved", "emptied"])  # an unmounted disk is an empty folder
def test_data_that_were_there_are_waited_for_at_the_start(tmp_path, gone):
    config = folder(tmp_path / "data")
    os.rename(tmp_path / "data", tmp_path / "elsewhere")
    if gone == "emptied":
        (tmp_path / "data").mkdir()

    def back():
        if gone == "emptied":
            os.rmdir(tmp_path / "data")
        os.rename(tmp_path / "elsewhere", tmp_path / "data")

    with pytest.raises(DataMissing):  # of a new run: a mistyped name
        sources(config)
    with pytest.raises(StorageUnavailable, match="did not come back within 0 s"):
        sources(config | {"storage_wait": 0.1}, was_there=True)
    threading.Timer(0.3, back).start()
    assert len(sources(config, was_there=True).train) == 8


def test_a_listing_during_an_outage_is_whole(tmp_path, monkeypatch):
    config, scandir, failures = folder(tmp_path), os.scandir, [errno.ENOENT, errno.EIO]

    def failing(path):
        if str(path).endswith("class1") and failures:
            raise OSError(failures.pop(), "away", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    assert len(sources(config).train) == 8 and not failures
    failures.append(errno.EACCES)
    with pytest.raises(UsageError, match="cannot read .*class1: away"):
        scan_folder(str(tmp_path))


def test_a_client_of_a_bucket_counts_as_a_disk(tmp_path, monkeypatch):
    from mae_jax.data.sources import tfrecord
    from mae_jax.runtime.tensorflow_cpu import tf

    def unavailable(path):
        raise tf.errors.UnavailableError(None, None, "503")

    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"data")
    reader = tfrecord.TFRecordReader([tfrecord.Part(str(path), 0, 1, 1)], cache=None)
    assert reader[0] == b"data"
    monkeypatch.setattr(tfrecord, "_open", unavailable)
    with pytest.raises(OSError, match="503") as caught:
        _ = reader[0]
    assert storage.is_away(caught.value)


def test_an_outage_of_patiently_is_of_the_storage_only():
    def full():
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        patiently(full, what="x", limit=60, was_there=True)
