"""Batches do not depend on hosts, workers or restarts; evaluation counts every example once."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import eval_batches, load_images, train_batches
from mae_jax.data.sources import build
from mae_jax.data.sources.build import make_sources
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import MemorySource, encode, jpeg, picture

SIZE = (16, 24)


def train(
    source, count, *, hosts=1, only_host=None, start_step=0, batch_size=8, workers=1, **config
):
    """The first global batches, joined from all hosts; or the rows of one host."""
    iterators = [
        train_batches(
            source,
            data_config={"workers": workers, **config},
            image_size=SIZE,
            channels=3,
            batch_size=batch_size,
            seed=7,
            start_step=start_step,
            process_index=host,
            process_count=hosts,
        )
        for host in (range(hosts) if only_host is None else [only_host])
    ]
    batches = []
    for _ in range(count):
        parts = [next(iterator) for iterator in iterators]
        batches.append({k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    for iterator in iterators:
        iterator.close()
    return batches


class Noting(MemorySource):
    """Records what is read, in order."""

    def __init__(self, data):
        super().__init__(data)
        self.read_so_far = []

    def read(self, indices):
        self.read_so_far.extend(int(index) for index in indices)
        return super().read(indices)


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert np.array_equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def reference(pictures):
    return train(pictures, 6)  # 48 rows of 23 examples: two epoch boundaries


def test_shapes_and_types(reference):
    batch = reference[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((8, 16, 24, 3), "uint8"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }
    assert np.array_equal(batch["label"], batch["index"])  # the source's labels are its numbers
    assert len({image.tobytes() for image in batch["image"]}) == 8


@pytest.mark.parametrize(("hosts", "workers"), [(2, 1), (4, 2), (1, 4)])
def test_hosts_and_workers_do_not_change_the_batches(pictures, reference, hosts, workers):
    assert_equal(train(pictures, 6, hosts=hosts, workers=workers), reference)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_each_host_reads_its_rows_of_every_batch_and_no_others(pictures, reference, hosts):
    for host in range(hosts):
        source = Noting(pictures.data)
        train(source, 6, only_host=host, hosts=hosts, prefetch=1)
        share = 8 // hosts
        wanted = [b["index"][host * share : (host + 1) * share] for b in reference]
        # One worker reads in order, up to two batches ahead: one is ready, one is being filled.
        assert source.read_so_far[: 6 * share] == np.concatenate(wanted).tolist()
        assert len(source.read_so_far) <= 9 * share


def test_resuming_at_a_step_gives_the_same_batches(pictures, reference):
    assert_equal(train(pictures, 4, start_step=2), reference[2:])


def test_a_new_epoch_brings_new_crops(pictures):
    (first,), (second,) = (
        train(pictures, 1, batch_size=23),
        train(pictures, 1, batch_size=23, start_step=1),
    )
    first, second = (b["image"][np.argsort(b["index"])] for b in (first, second))
    assert not (first == second).all(axis=(1, 2, 3)).any()


def test_a_batch_longer_than_the_set(pictures):
    (batch,) = train(pictures, 1, batch_size=50)
    assert (np.bincount(batch["index"]) >= 2).all()


def test_without_augmentation_training_shows_the_evaluation_view(pictures):
    (batch,) = train(pictures, 1, augment="none", batch_size=23)
    views = np.concatenate([b["image"] for b in evaluate(pictures, batch_size=23)])
    assert np.array_equal(batch["image"], views[batch["index"]])


def evaluate(source, *, batch_size=8, hosts=1, limit=None, channels=3, **config):
    iterators = [
        eval_batches(
            source,
            data_config={"workers": 2, **config},
            image_size=SIZE,
            channels=channels,
            batch_size=batch_size,
            process_index=host,
            process_count=hosts,
            limit=limit,
        )
        for host in range(hosts)
    ]
    for parts in zip(*iterators, strict=True):
        yield {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


@pytest.mark.parametrize("hosts", [1, 4])
def test_evaluation_counts_each_of_1003_examples_once(hosts):
    tiny = [np.full((2, 2, 3), i % 251, np.uint8) for i in range(1003)]
    batches = list(evaluate(MemorySource(tiny), batch_size=128, hosts=hosts))
    assert len(batches) == 8
    valid = np.concatenate([b["valid"] for b in batches])
    index = np.concatenate([b["index"] for b in batches])
    image = np.concatenate([b["image"] for b in batches])
    label = np.concatenate([b["label"] for b in batches])
    assert valid.dtype == bool and valid.sum() == 1003
    assert index[valid].tolist() == list(range(1003)) == label[valid].tolist()
    assert (index[~valid] == -1).all() and (label[~valid] == -1).all()
    assert (image[valid] == (np.arange(1003) % 251)[:, None, None, None]).all()


def test_evaluation_of_a_part_of_the_set(pictures):
    index = np.concatenate([b["index"][b["valid"]] for b in evaluate(pictures, limit=5)])
    assert index.tolist() == [0, 4, 9, 13, 18]


@pytest.mark.parametrize("start_step", [3, 5])  # there are three batches
def test_there_is_nothing_after_the_last_batch(pictures, start_step):
    iterator = eval_batches(
        pictures,
        data_config={},
        image_size=SIZE,
        channels=3,
        batch_size=8,
        start_step=start_step,
    )
    assert list(iterator) == []


def test_a_finished_or_closed_iterator_stays_finished(pictures):
    iterator = eval_batches(pictures, data_config={}, image_size=SIZE, channels=3, batch_size=23)
    assert len(list(iterator)) == 1 and list(iterator) == []
    iterator.close()


def test_other_channels_and_float_values(tmp_path):
    bands = [np.full((20, 20, 5), 1000.0 * i, np.float32) for i in range(4)]
    (batch,) = evaluate(MemorySource(bands), batch_size=4, channels=5, dtype="float32")
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (4, *SIZE, 5)
    assert np.allclose(batch["image"][3], 3000)


def test_data_with_trailing_zero_bytes_arrive_whole():
    image = np.zeros((12, 12, 3), np.uint8)
    bmp = encode(Image.fromarray(image), "BMP") + bytes(10)
    (batch,) = evaluate(MemorySource([bmp, jpeg(picture(0)) + bytes(9)]), batch_size=2)
    assert batch["valid"].all()


def test_load_images_is_the_evaluation_view(tmp_path, pictures):
    names = []
    for i in (0, 1):
        names.append(tmp_path / f"{i}")
        names[-1].write_bytes(pictures.data[i])
    images = load_images(names, image_size=SIZE, channels=3)
    (batch,) = evaluate(MemorySource(pictures.data[:2]), batch_size=2)
    assert np.array_equal(images, batch["image"])
    with pytest.raises(UsageError, match="cannot use the image .*nothing.png"):
        load_images([tmp_path / "nothing.png"], image_size=SIZE, channels=3)


def test_batches_that_do_not_divide_are_refused(pictures):
    with pytest.raises(UsageError, match="--config.batch_size=10"):
        train(pictures, 1, hosts=4, batch_size=10)


def test_shapes_train_and_evaluate_on_different_images():
    config = {"source": "shapes", "num_train": 40, "num_eval": 10}
    sources = make_sources(config, image_size=SIZE, channels=3, workdir=None)
    assert sources.eval is not None
    assert (len(sources.train), len(sources.eval)) == (40, 10)
    ours = {record.data.tobytes() for record in sources.train.read(range(40))}
    theirs = {record.data.tobytes() for record in sources.eval.read(range(10))}
    assert len(ours | theirs) == 50
    assert sources.train.classes == sources.eval.classes
    assert sources.train.read([0])[0].data.shape == (20, 30, 3)  # 1.25 x the model's size
    (batch,) = train(sources.train, 1)
    assert batch["label"].max() < len(sources.train.classes)


def test_plain_shapes_are_another_data_set():
    config = {"source": "shapes", "num_train": 1, "num_eval": 1}
    first, plain = (
        make_sources(config | {"scenes": scenes}, image_size=SIZE, channels=3, workdir=None)
        for scenes in ("cluttered", "plain")
    )
    for one, other in ((first.train, plain.train), (first.eval, plain.eval)):
        assert one is not None and other is not None
        assert not np.array_equal(one.read([0])[0].data, other.read([0])[0].data)
        assert one.fingerprint() != other.fingerprint()
    assert first.train.fingerprint()["hash"] == "start 0, size (20, 30)"  # as in old runs


def test_a_missing_fast_package_is_named(caplog, monkeypatch):
    for there in (True, False):
        monkeypatch.setitem(build.FAST, "simplejpeg", True)
        monkeypatch.setitem(build.FAST, "cykooz-resizer", there)
        caplog.clear()
        with caplog.at_level("INFO"):
            make_sources({"source": "shapes"}, image_size=SIZE, channels=3, workdir=None)
        assert ("the work of cykooz-resizer, which" in caplog.text) == (not there)


def test_unknown_keys_and_impossible_values_are_refused():
    def make(**config):
        return make_sources(config, image_size=SIZE, channels=3, workdir=None)

    with pytest.raises(
        UsageError,
        match="config.data.crop_scal: there is no such key; did you mean --config.data.crop_scale",
    ):
        make(crop_scal=(0.2, 1.0))
    with pytest.raises(UsageError, match="--config.data.source=webdataset"):
        make(source="webdataset")
    with pytest.raises(UsageError, match="--config.data.crop_scale"):
        make(crop_scale=(0.5, 0.2))


PROGRAM = """
import sys
import mae_jax.data
assert not {"tensorflow", "tensorflow_datasets", "PIL"} & set(sys.modules), "imported too early"
config = {"source": "shapes", "workers": 2}
source = mae_jax.data.make_sources(
    config, image_size=(16, 16), channels=3, workdir=None).train
batches = mae_jax.data.train_batches(
    source, data_config=config, image_size=(16, 16), channels=3, batch_size=8, seed=0)
next(batches)
raise SystemExit(7)
"""


def test_tensorflow_is_imported_late_and_an_open_iterator_does_not_disturb_the_exit():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr


def test_colors_change_after_the_crop_and_not_with_the_number_of_hosts(pictures):
    colors = {"randaug_magnitude": 9.0, "color_jitter": 0.4}
    plain, augmented = train(pictures, 2), train(pictures, 2, **colors)
    assert_equal(augmented, train(pictures, 2, hosts=2, workers=2, **colors))
    for a, b in zip(plain, augmented, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        changed = [not np.array_equal(x, y) for x, y in zip(a["image"], b["image"], strict=True)]
        assert all(changed)
