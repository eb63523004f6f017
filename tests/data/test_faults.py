"""Everything that can be wrong with a file, as in docs/data.md ("Bad images")."""

import io
import logging
import os
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import eval_batches, make_sources, train_batches
from mae_jax.data.loader import BadExamples
from mae_jax.data.on_device_images import read_images
from mae_jax.data.options import DataOptions
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.transforms import decode
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import MemorySource, jpeg, picture
from tests.helpers import faults

COUNT = 12
FAULTY = 5
ALL_BAD = {
    **{name: (*case, "uint8") for name, case in faults.BAD.items()},
    **{name: (*case, "float32") for name, case in faults.BAD_FLOATS.items()},
}


@pytest.fixture(scope="module")
def good():
    return [jpeg(picture(i)) for i in range(COUNT)]


def folder_with(root, good, content=None):
    """Good files, except number FAULTY, which contains `content`."""
    for i, data in enumerate(good):
        (root / f"{i:02}.jpg").write_bytes(content if i == FAULTY and content is not None else data)
    config = {"source": "folder", "root": str(root)}
    return make_sources(config, image_size=(8, 8), channels=3, workdir=None).train


def run(make, source, config, batch_size=COUNT, **options):
    size = {"image_size": (8, 8), "channels": 3, "batch_size": batch_size}
    return make(source, data_config=config, **size, **options)


def outcomes(source, dtype):
    """(Training's first epoch, its iterator, evaluation's batch, bad examples of a whole set)."""
    config = {"dtype": dtype, "max_bad_fraction": 0.1, "workers": 2}
    train = run(train_batches, source, config, seed=0)
    (evaluated,) = run(eval_batches, source, config)
    _, examples = read_images(source, DataOptions.from_config(config), channels=3)
    return next(train), train, evaluated, examples


@pytest.mark.parametrize("name", faults.ODD)
def test_odd_images_are_used(tmp_path, good, name):
    content, size = faults.ODD[name]
    source = folder_with(tmp_path, good, content)
    _, train, evaluated, examples = outcomes(source, "uint8")
    assert train.bad_count == len(examples.bad) == 0
    assert evaluated["valid"].all()
    assert tuple(examples.sizes[FAULTY]) == size


def test_the_first_of_several_images_in_a_file_is_used():
    for name in ("animated webp", "animated png", "pages of a tiff"):
        pixels = decode.to_array(
            faults.ODD[name][0], channels=3, dtype="uint8", exif_transpose=True
        )
        wrong = np.abs(pixels.astype(int) - faults.PIXELS).mean()
        assert wrong < 8 < np.abs(pixels.astype(int) - picture(51)).mean(), name


@pytest.mark.parametrize("name", ALL_BAD)
def test_bad_images_are_named_counted_and_replaced(tmp_path, good, caplog, name):
    content, reason, dtype = ALL_BAD[name]
    source = folder_with(tmp_path, good, content)
    with caplog.at_level(logging.WARNING):
        trained, train, evaluated, examples = outcomes(source, dtype)
    check_replaced(source, trained, train, evaluated, examples, caplog, reason)
    config = {"dtype": dtype, "max_bad_fraction": 0.0}
    with pytest.raises(UsageError, match=rf"1 of {COUNT} images .*{FAULTY:02}\.jpg"):
        list(run(eval_batches, source, config))


def check_replaced(source, trained, train, evaluated, examples, caplog, reason):
    assert train.bad_count == len(examples.bad) == 1
    assert examples.readable.tolist() == [i != FAULTY for i in range(COUNT)]
    assert sorted(evaluated["index"][~evaluated["valid"]]) == [FAULTY]
    assert np.isfinite(trained["image"]).all()
    lines = [r.getMessage() for r in caplog.records if "bad image" in r.getMessage()]
    assert len(lines) == 3  # training, evaluation, the whole set: each once
    assert all(source.describe(FAULTY) in line for line in lines)
    assert all(any(text in line for text in reason.split("|")) for line in lines), lines


def test_a_file_that_vanished_is_a_bad_image(tmp_path, good, caplog):
    source = folder_with(tmp_path, good)
    os.remove(source.describe(FAULTY))
    with caplog.at_level(logging.WARNING):
        check_replaced(source, *outcomes(source, "uint8"), caplog, "No such file")


def test_a_file_that_may_not_be_read_is_a_bad_image(good):
    root = Path(tempfile.mkdtemp())  # not below pytest's folder, which only its owner may enter
    try:
        root.chmod(0o755)
        source = folder_with(root, good)
        os.chmod(source.describe(FAULTY), 0)
        owner = os.geteuid()
        if owner == 0:
            os.seteuid(65534)  # root may read everything
        try:
            _, examples = read_images(source, DataOptions(max_bad_fraction=0.1), channels=3)
        finally:
            os.seteuid(owner)
    finally:
        shutil.rmtree(root)
    assert len(examples.bad) == 1 and "PermissionError" in examples.bad.reason(FAULTY)


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path, good, monkeypatch):
    source = folder_with(tmp_path, good)
    monkeypatch.setattr("mae_jax.data.sources.folder.MAX_FILE", 2**20)
    with open(source.describe(FAULTY), "r+b") as file:
        file.truncate(2**20 + 1)
    assert isinstance(source, FolderSource)
    with pytest.raises(OSError, match="a file of 1,048,577 bytes"):
        source.read([FAULTY])


@pytest.mark.parametrize("name", faults.BOMBS)
def test_a_bomb_takes_no_memory(name):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, hard))
    try:
        for channels in (3, 6):
            with pytest.raises(ValueError, match="too large|cut short"):
                decode.to_array(
                    faults.BAD[name][0], channels=channels, dtype="uint8", exif_transpose=True
                )
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_verdict_on_a_jpeg_is_pillow_s():
    """So it does not depend on whether simplejpeg is installed, or on what was read before."""
    simplejpeg = pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(0)
    options = {"channels": 3, "dtype": "uint8", "exif_transpose": True}
    both = 0
    for _ in range(600):
        data = bytearray(faults.JPEG)
        place = int(rng.integers(2, len(data) - 2))
        if rng.integers(2):
            data[place] = rng.integers(256)
        else:
            del data[place : place + int(rng.integers(1, 40))]
        if not decode.is_plain_jpeg(bytes(data), exif_transpose=True):
            continue
        try:
            pixels = simplejpeg.decode_jpeg(bytes(data), "RGB")
        except ValueError:
            continue
        both += 1
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        assert np.array_equal(pixels, decode.to_array(bytes(data), **options))
    assert both > 50


def test_most_of_a_host_s_share_stops_it():
    source = MemorySource([b""] * 800)
    few = BadExamples(source, max_fraction=0.5, share=100)  # one host of eight
    for index in range(50):
        few.add(index, "broken")
    few.check()
    few.add(50, "broken")
    with pytest.raises(UsageError, match=r"51 of 800 .*which reads 100 of them in a pass"):
        few.check()
    for index in range(400):  # after many passes it has seen most of the set
        few.try_example(index)
    few.check()


def test_a_host_that_can_read_nothing_stops_evaluation(good):
    data = [b"" if i % 2 else good[0] for i in range(64)]  # the second of two hosts
    config = {"max_bad_fraction": 0.5}
    hosts = [{"process_index": i, "process_count": 2} for i in range(2)]
    batches = [run(eval_batches, MemorySource(data), config, 2, **host) for host in hosts]
    assert all(batch["valid"].all() for batch in batches[0])
    with pytest.raises(UsageError, match="which reads 32 of them in a pass"):
        list(batches[1])


def test_a_batch_larger_than_the_set_is_logged(good, caplog):
    with caplog.at_level(logging.WARNING):
        batch = next(run(train_batches, MemorySource(good), {}, 2 * COUNT, seed=0))
    assert (np.bincount(batch["index"]) == 2).all()
    assert f"{COUNT} training images are fewer than one batch" in caplog.text
