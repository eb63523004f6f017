"""Feature extraction: correct, in order, and resumable at any row."""

import errno
import glob
import os
import shutil
import signal

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from mae_jax import convert, inference
from mae_jax.data import image_source
from mae_jax.runtime.errors import RunError, UsageError
from mae_jax.tools import extract
from tests.parity import official


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirteen images in two folders; one image cannot be read."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(13):
        place = root / ("cat" if i < 6 else "dog")
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (36 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    (root / "dog" / "09.png").write_bytes(b"no image")
    return str(root)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("weights") / "tiny")
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    convert.save(convert.load(official.path("mae_tiny.safetensors"), hints=hints), path)
    return path


def command(weights, images, out, *more):
    arguments = ["--checkpoint", weights, "--images", images, "--out", str(out)]
    return extract.main([*arguments, "--batch_size", "4", *more])


@pytest.fixture(scope="module")
def expected(folder, weights):
    """Features by the Python interface, image by image."""
    model = inference.load(weights)
    files = sorted(glob.glob(f"{folder}/*/*.png"))
    rows = [
        np.full(48, np.nan, np.float32)
        if "09" in os.path.basename(f)
        else model.features(model.load_images([f]))[0]
        for f in files
    ]
    return files, np.stack(rows)


def test_features_of_a_folder(folder, weights, expected, tmp_path, capsys):
    files, features = expected
    out = tmp_path / "out.npz"
    assert command(weights, folder, out) == 0
    captured = capsys.readouterr()
    assert "1 images could not be read" in captured.out and "09.png" in captured.err
    found = np.load(out)
    assert found["path"].tolist() == files
    assert found["label"].tolist() == [0] * 6 + [1] * 3 + [-1] + [1] * 3
    names = ["cat"] * 6 + ["dog"] * 3 + [""] + ["dog"] * 3
    assert found["class"].tolist() == names
    assert found["valid"].tolist() == [i != 9 for i in range(13)]
    assert found["features"].dtype == np.float32
    np.testing.assert_allclose(found["features"], features, rtol=0, atol=1e-5)
    assert os.listdir(tmp_path) == ["out.npz"]
    with pytest.raises(UsageError, match="exists: remove it"):
        command(weights, folder, out)


def test_parquet_has_the_same_columns(folder, weights, expected, tmp_path):
    files, features = expected
    out = tmp_path / "out.parquet"
    assert command(weights, folder, out) == 0
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert table["class"] == ["cat"] * 6 + ["dog"] * 3 + [""] + ["dog"] * 3
    assert table["path"] == files and table["valid"].count(False) == 1
    np.testing.assert_allclose(np.array(table["features"]), features, rtol=0, atol=1e-5)


def test_names_that_parquet_cannot_store_are_refused_before_any_work(folder, weights, tmp_path):
    name = "\udcff.png"
    (tmp_path / "odd").mkdir()
    shutil.copy(f"{folder}/cat/00.png", tmp_path / "odd" / name)
    with pytest.raises(UsageError, match=r"stores only UTF-8 names, and .*udcff.png' is not"):
        command(weights, str(tmp_path / "odd"), tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == ["odd"]
    assert command(weights, str(tmp_path / "odd"), tmp_path / "out.npz") == 0
    found = np.load(tmp_path / "out.npz")
    assert found["path"].tolist() == [str(tmp_path / "odd" / name)]
    assert found["class"].tolist() == [""]


def test_a_file_that_exists_is_not_a_pattern(tmp_path, folder):
    for name in ("shot[0].png", "shot0.png"):
        shutil.copy(f"{folder}/cat/00.png", tmp_path / name)
    assert image_source(f"{tmp_path}/shot[0].png").describe(0) == f"{tmp_path}/shot[0].png"
    assert len(image_source(f"{tmp_path}/shot*.png")) == 2
    (tmp_path / "shot[0].png").unlink()
    assert image_source(f"{tmp_path}/shot[0].png").describe(0) == f"{tmp_path}/shot0.png"


def test_patches_of_a_layer_in_half_precision(folder, weights, tmp_path):
    out = tmp_path / "out.npz"
    more = ("--pool", "patches", "--layer", "0", "--dtype", "float16")
    assert command(weights, f"{folder}/cat/*.png", out, *more) == 0
    found = np.load(out)
    assert found["features"].shape == (6, 64, 48) and found["features"].dtype == np.float16
    assert (found["label"] == -1).all()  # a glob pattern has no classes
    model = inference.load(weights)
    images = model.load_images(found["path"].tolist())
    wanted = model.features(images, pool="patches", layer=0)
    np.testing.assert_allclose(found["features"], wanted, rtol=1e-3, atol=1e-3)
    parquet = tmp_path / "out.parquet"
    assert command(weights, f"{folder}/cat/*.png", parquet, *more) == 0
    schema = pyarrow.parquet.read_schema(parquet)
    assert schema.metadata[b"shape"] == b"[64, 48]"


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("out", ["out.npz", "out.parquet"])
def test_a_full_disk_keeps_finished_rows_and_nothing_else(
    folder, weights, tmp_path, monkeypatch, out
):
    append, calls, path = extract.Partial.append, [], tmp_path / out
    with monkeypatch.context() as patch:
        patch.setattr(extract.filesystem, "write", full)
        with pytest.raises(RunError, match=rf"{out} cannot be written: No space left .* free\)$"):
            command(weights, folder, path)
    assert os.listdir(tmp_path) == []

    def fills_up(self, rows):
        calls.append(len(rows["label"]))
        append(self, {name: x[:1] for name, x in rows.items()} if len(calls) == 2 else rows)
        if len(calls) == 2:
            full()

    stays = rf"kept in {path}.partial: run the same command to continue$"
    with monkeypatch.context() as patch:
        patch.setattr(extract.Partial, "append", fills_up)
        with pytest.raises(RunError, match=stays):
            command(weights, folder, path)
    with monkeypatch.context() as patch:
        patch.setattr(extract.np, "savez", full)
        patch.setattr(pyarrow.parquet.ParquetWriter, "write_table", full)
        with pytest.raises(RunError, match=stays):
            command(weights, folder, path)
    assert os.listdir(tmp_path) == [f"{out}.partial"]
    assert command(weights, folder, path) == 0
    assert os.listdir(tmp_path) == [out]


class Stop(Exception):
    """Simulates the death of the process."""


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_an_interrupted_command_continues(folder, weights, tmp_path, monkeypatch, batches):
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert command(weights, folder, whole) == 0
    append, calls = extract.Partial.append, []

    def dies(self, rows):
        append(self, rows)
        calls.append(len(rows["label"]))
        if len(calls) == batches:
            with open(os.path.join(self.folder, "features.bin"), "ab") as file:
                file.write(b"half a row")  # killed while writing
            raise Stop

    monkeypatch.setattr(extract.Partial, "append", dies)
    with pytest.raises(Stop):
        command(weights, folder, out)
    assert not out.exists()
    monkeypatch.setattr(
        extract.Partial, "append", lambda s, r: (calls.append(len(r["label"])), append(s, r))
    )
    with pytest.raises(UsageError, match="pool: mean -> cls"):
        command(weights, folder, out, "--pool", "cls")
    other = convert.load(weights)
    other.metadata["config"]["data"]["mean"] = [
        0.1,
        0.2,
        0.3,
    ]  # same weights, other pixels
    convert.save(other, str(tmp_path / "other"))
    with pytest.raises(UsageError, match="pixels: "):
        command(str(tmp_path / "other"), folder, out)
    calls.clear()
    assert command(weights, folder, out) == 0
    assert sum(calls) == 13 - 4 * batches  # nothing was computed twice
    for name in ("features", "label", "valid", "path"):
        np.testing.assert_array_equal(np.load(out)[name], np.load(whole)[name])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_after_a_batch(folder, weights, tmp_path, monkeypatch, capsys, number):
    append = extract.Partial.append

    def interrupted(self, rows):
        os.kill(os.getpid(), number)
        append(self, rows)

    monkeypatch.setattr(extract.Partial, "append", interrupted)
    assert command(weights, folder, tmp_path / "out.npz") == 75
    assert "run the same command to continue" in capsys.readouterr().err
    assert os.path.getsize(tmp_path / "out.npz.partial" / "valid.bin") == 4


def test_images_by_list_and_bad_arguments(folder, weights, tmp_path):
    names = ["dog/12.png", "cat/00.png"]
    listing = os.path.join(folder, "some.txt")
    with open(listing, "w", encoding="utf-8") as file:
        file.write("\n".join(names))
    try:
        source = image_source(listing)
        assert [os.path.relpath(source.describe(i), folder) for i in range(2)] == names
    finally:
        os.remove(listing)
    with pytest.raises(UsageError, match="no folder, no list, and no file matches"):
        image_source(f"{folder}/*.jpg")
    with pytest.raises(UsageError, match="is not tfds:NAME/SPLIT"):
        image_source("tfds:imagenet2012")
    with pytest.raises(UsageError, match=r"must end in \.npz or \.parquet"):
        command(weights, folder, tmp_path / "out.csv")
    with pytest.raises(UsageError, match="--batch_size=0"):
        command(weights, folder, tmp_path / "out.npz", "--batch_size", "0")
    with pytest.raises(UsageError, match="layer 7 does not exist"):
        command(weights, folder, tmp_path / "out.npz", "--layer", "7")
    shutil.rmtree(tmp_path)


def test_partial_files_of_an_earlier_version_are_continued(tmp_path):
    """It used other names of keys; other values are still refused."""
    kind = {"shape": (2,), "dtype": np.dtype(np.float32)}
    extract.Partial(str(tmp_path), {"pixels": {"resident": False}}, **kind)
    extract.Partial(str(tmp_path), {"pixels": {"on_device": False}}, **kind)
    with pytest.raises(UsageError, match="was started with other settings"):
        extract.Partial(str(tmp_path), {"pixels": {"on_device": True}}, **kind)
