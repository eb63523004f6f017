"""Batches made on the devices equal those of the host's pipeline."""

import io
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax.config.diff import changes
from mae_jax.data import on_device, pipeline
from mae_jax.data.on_device import OnDeviceLoader
from mae_jax.data.prefetch import Prefetch
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from tests.data.helpers import MemorySource, encode, jpeg, picture
from tests.helpers import tiny_configs

SIZE = (16, 24)
ARRAYS = [picture(i, 30 + 3 * i, 70 - 2 * i) for i in range(23)]
FILES = [
    jpeg(image) if i % 2 else encode(Image.fromarray(image), "PNG")
    for i, image in enumerate(ARRAYS)
]


def decoded(files):
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]


def mesh():
    return sharding.make_mesh(2, 2)


def settings(batch_size=8, *, process_index=0, process_count=1, **config):
    return {
        "data_config": {"workers": 2, **config},
        "image_size": SIZE,
        "channels": 3,
        "batch_size": batch_size,
        "process_index": process_index,
        "process_count": process_count,
    }


def train(feed, source, steps=6, *, start_step=0, **options):
    """The first batches of a run, from the devices or from the host."""
    batches = feed.train_batches(source, seed=7, start_step=start_step, **settings(**options))
    found = [{k: np.asarray(v) for k, v in next(batches).items()} for _ in range(steps)]
    batches.close()
    return found


def evaluate(feed, source, *, limit=None, **options):
    batches = feed.eval_batches(source, limit=limit, **settings(**options))
    return [{k: np.asarray(v) for k, v in batch.items()} for batch in batches]


EXACT = {"max_error": 0, "equal": 1}


def assert_same(ours, theirs, *, max_error=1, equal=0.99):
    """Everything except the pixels is equal, and nearly all pixels are.

    The host's SIMD code multiplies with weights of few bits.
    """
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"image"}:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    a, b = (np.concatenate([batch["image"] for batch in batches]) for batches in (ours, theirs))
    assert a.dtype == b.dtype and a.shape == b.shape
    difference = np.abs(a.astype(np.float64) - b)
    assert difference.max() <= max_error
    assert (difference == 0).mean() >= equal


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"augment": "crop_once", "crop_scale": (0.08, 1.0)},
        {"augment": "crop_fixed"},
        {"augment": "none"},
        {"hflip": False, "resize_antialias": False},
    ],
    ids=["crop", "crop_once", "crop_fixed", "none", "plain"],
)
def test_batches_equal_the_host_s(options):
    source = MemorySource(ARRAYS)  # 48 rows of 23 examples: two epoch boundaries
    close = EXACT if options.get("augment") == "none" else {}
    ours, theirs = (train(feed, source, **options) for feed in (OnDeviceLoader(mesh()), pipeline))
    assert_same(ours, theirs, **close)


def test_batches_of_files_equal_the_host_s():
    ours = train(OnDeviceLoader(mesh()), MemorySource(FILES))
    assert_same(ours, train(pipeline, MemorySource(decoded(FILES))))
    assert_same(ours, train(pipeline, MemorySource(FILES)))


def test_float32_pixels_keep_their_units():
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-9, 5000, (20 + i, 30, 3)).astype(np.float32) for i in range(9)]
    source = MemorySource(arrays)
    ours, theirs = (
        train(feed, source, 2, dtype="float32") for feed in (OnDeviceLoader(mesh()), pipeline)
    )
    assert ours[0]["image"].dtype == np.float32
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a["image"], b["image"], rtol=1e-5, atol=1e-2)


def test_a_restart_continues_exactly():
    source = MemorySource(ARRAYS)
    whole, rest = (
        train(OnDeviceLoader(mesh()), source),
        train(OnDeviceLoader(mesh()), source, 3, start_step=3),
    )
    assert_same(rest, whole[3:], **EXACT)


def test_every_host_makes_its_rows_of_the_batch():
    source, feed = MemorySource(ARRAYS), OnDeviceLoader(mesh())
    whole = train(feed, source, 3)
    hosts = [train(feed, source, 3, process_index=i, process_count=2) for i in range(2)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*hosts, strict=True)]
    assert_same(joined, whole, **EXACT)


def test_batches_lie_split_over_the_mesh():
    batches = OnDeviceLoader(mesh()).train_batches(MemorySource(ARRAYS), seed=7, **settings())
    feed = Prefetch(batches, mesh())
    batch = next(feed)
    feed.close()
    for name, values in batch.items():
        assert values.sharding == sharding.batch_sharding(mesh()), name
    assert batch["image"].shape == (8, *SIZE, 3) and batch["image"].dtype == np.uint8


def test_many_rows_take_turns(monkeypatch):
    source = MemorySource(ARRAYS)
    at_once = train(OnDeviceLoader(mesh()), source, 2, batch_size=24)
    on_device._compile_views.cache_clear()
    monkeypatch.setattr(on_device, "WORKING_BYTES", 4 * 4 * 96 * 70 * 3)  # four of the six rows
    in_turns = train(OnDeviceLoader(mesh()), source, 2, batch_size=24)
    on_device._compile_views.cache_clear()
    assert_same(in_turns, at_once, equal=0.999)


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "float32"}, {"resizer": "fast"}, {"resize_antialias": False}]
)
@pytest.mark.parametrize("limit", [None, 5])
def test_evaluation_equals_the_host_s(limit, options):
    source = MemorySource(ARRAYS)
    ours = evaluate(OnDeviceLoader(mesh()), source, limit=limit, **options)
    assert_same(ours, evaluate(pipeline, source, limit=limit, **options), **EXACT)
    assert sum(batch["valid"].sum() for batch in ours) == (limit or 23)


def test_evaluation_reads_only_what_it_shows_and_only_once():
    read = []

    class Recording(MemorySource):
        def read(self, indices):
            read.extend(int(index) for index in indices)
            return super().read(indices)

    source, feed = Recording(ARRAYS), OnDeviceLoader(mesh())
    evaluate(feed, source, limit=5)
    evaluate(feed, source, limit=5)
    assert sorted(read) == [0, 4, 9, 13, 18]
    train(feed, source)  # random crops need the whole images
    assert len(read) == 5 + len(ARRAYS)


def damaged():
    data = list(FILES)
    data[4], data[7] = b"404 Not Found", FILES[7][:-200]
    table = bytearray(FILES[1])
    start = table.index(b"\xff\xc4")
    table[start + 5 : start + 21] = bytes([255] * 16)  # only the decoder finds this
    data[1] = bytes(table)
    return MemorySource(data)


def test_bad_images_are_counted_and_replaced_as_on_the_host(caplog):
    source, feed = damaged(), OnDeviceLoader(mesh())
    with caplog.at_level(logging.WARNING):
        ours = train(feed, source, max_bad_fraction=0.2)
    warnings = [r.getMessage() for r in caplog.records if "bad image" in r.getMessage()]
    assert sorted(line.split("memory#")[1][0] for line in warnings) == ["1", "4", "7"]
    assert_same(ours, train(pipeline, source, max_bad_fraction=0.2))
    batches = feed.train_batches(source, seed=7, **settings(max_bad_fraction=0.2))
    assert batches.bad_count == 3
    ours, theirs = (evaluate(f, source, max_bad_fraction=0.2) for f in (feed, pipeline))
    assert_same(ours, theirs, **EXACT)
    assert sum(batch["valid"].sum() for batch in ours) == 20


def test_evaluation_of_nothing_but_bad_images_equals_the_host_s():
    source = MemorySource([b"404 Not Found"] * 5)
    ours, theirs = (
        evaluate(feed, source, max_bad_fraction=1.0) for feed in (OnDeviceLoader(mesh()), pipeline)
    )
    assert_same(ours, theirs, **EXACT)
    assert not ours[0]["valid"].any()


def test_too_many_bad_images_stop_the_run():
    data = [b"404 Not Found" if i % 2 else content for i, content in enumerate(FILES)]
    with pytest.raises(UsageError, match=r"(?s)11 of 23 .*max_bad_fraction=0.1.*#1: .*#3: "):
        train(OnDeviceLoader(mesh()), MemorySource(data), max_bad_fraction=0.1)
    with pytest.raises(UsageError, match=r"(?s)3 of 23 .*max_bad_fraction=0.0 "):
        train(OnDeviceLoader(mesh()), damaged(), max_bad_fraction=0.0)
    with pytest.raises(UsageError, match="all its replacements cannot be read: memory#.*channels"):
        four = MemorySource([np.zeros((9, 9, 4), np.uint8)] * 9)
        train(OnDeviceLoader(mesh()), four, max_bad_fraction=1.0)


def test_a_set_that_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    read = []

    class Large(MemorySource):
        def read(self, indices):
            read.extend(indices)
            return super().read(indices)

    monkeypatch.setattr(on_device, "free_bytes", lambda mesh: 10 * 2**20)
    source = Large([ARRAYS[0]] * 2000)  # 30 x 70 x 3 bytes each
    with pytest.raises(
        UsageError, match=r"2,000 images of up to 30 x 70 take 12.0 MiB .* 10.0 MiB"
    ):
        train(OnDeviceLoader(mesh()), source)
    assert len(read) < 500


class Device:
    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_room_is_what_the_smallest_device_has():
    host = on_device.free_bytes(mesh())
    assert 2**20 < host < 2**50

    class Mesh:
        size = 2
        devices = np.array([Device({"bytes_limit": 5000}), Device({"bytes_limit": 4000})])

    assert on_device.free_bytes(Mesh()) == 4000
    Mesh.devices = np.array([Device(None), Device({})])
    assert on_device.free_bytes(Mesh()) > host  # one copy of the set, not one for each CPU device


def test_the_log_says_how_large_the_set_is(caplog):
    with caplog.at_level(logging.INFO):
        train(OnDeviceLoader(mesh()), MemorySource(ARRAYS), 1)
    assert "0.4 MiB on each device for images of up to 96 x 70" in caplog.text


def test_colors_cannot_change_on_the_devices():
    with pytest.raises(UsageError, match="on_device=True .* --config.data.randaug_magnitude=0"):
        train(OnDeviceLoader(mesh()), MemorySource(ARRAYS), on_device=True, randaug_magnitude=9.0)


def test_a_run_does_not_change_sides_unnoticed():
    old, new = tiny_configs.config(), tiny_configs.config(data__on_device=True)
    assert changes(old, new) == ["data.on_device: False -> True"]
    del old.data.on_device  # a run of an earlier version
    assert changes(old, tiny_configs.config()) == []


def test_figures_show_the_same_images(tmp_path):
    ours, theirs = (
        Pretrain(
            tiny_configs.config(data__on_device=on_devices), str(tmp_path)
        ).data.first_held_out(3)
        for on_devices in (True, False)
    )
    assert len(ours["image"]) == 3  # although four devices make four
    assert_same([ours], [theirs], **EXACT)


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

HIDDEN = ("tensorflow", "tensorflow_datasets")

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in HIDDEN else super().find_spec(name, path, target)

finders = importlib.machinery.PathFinder, Finder
sys.meta_path = [finders[1] if finder is finders[0] else finder for finder in sys.meta_path]

from mae_jax.train import loop
from mae_jax.tasks.pretrain import Pretrain
from tests.helpers import tiny_configs

config = tiny_configs.config(steps=2, data__on_device=True, eval_every=1, figure_every=2)
assert loop.run(Pretrain(config, sys.argv[1]), config, sys.argv[1])
assert not set(HIDDEN) & set(sys.modules)
print([line["count"] for line in tiny_configs.metric_lines(sys.argv[1], "eval")])
"""


def test_a_machine_without_tensorflow_can_train(tmp_path):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[20.0, 20.0, 20.0]")
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert jax.device_count() == 4  # here as in the subprocess
