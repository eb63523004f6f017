"""Predictions for a folder of images: classes, or features and reconstructions."""

import csv

import numpy as np
import pytest
from PIL import Image

from mae_jax import convert, inference
from mae_jax.runtime.cli import run_command
from mae_jax.tasks import figures
from mae_jax.tools import predict
from tests.parity import official


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The official tiny classifier and autoencoder as folders of weights."""
    root = tmp_path_factory.mktemp("weights")
    for name, hints in (("vit_tiny_gp1", convert.Hints(3)), ("mae_tiny", convert.Hints(3, 2))):
        model = convert.load(official.path(f"{name}.safetensors"), hints=hints)
        convert.save(model, str(root / name))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 255, (60 + i, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def call(*argv):
    return run_command(lambda: predict.main([str(word) for word in argv]))


def test_classes_of_every_image_and_a_sheet(weights, photos, tmp_path, capsys):
    checkpoint = weights / "vit_tiny_gp1"
    assert call("--checkpoint", checkpoint, "--images", photos, "--out", tmp_path) == 0
    assert "could not be read" in capsys.readouterr().err
    with open(tmp_path / "predictions.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["image", "class1", "probability1", "class2", "probability2"]
    assert [row[0] for row in rows] == [f"{photos}/{i}.png" for i in range(5)] + [
        f"{photos}/broken.png"
    ]
    assert rows[-1][1:] == []
    # The same as from the model's own logits, in NumPy.
    model = inference.load(str(checkpoint))
    images = model.load_images([row[0] for row in rows[:-1]])
    features = model.features(images, pool="mean")
    logits = features @ model.params["head/kernel"] + model.params["head/bias"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(images), expected, rtol=0, atol=1e-5)
    for row, probability in zip(rows, expected, strict=False):
        best = np.argsort(-probability)[:5]
        assert row[1::2] == [model.class_names[i] for i in best]
        np.testing.assert_allclose(np.float64(row[2::2]), probability[best], atol=2e-4)
    assert Image.open(tmp_path / "predictions.png").size[0] > 6 * figures.MIN_CELL


def test_features_and_reconstructions_of_an_autoencoder(weights, photos, tmp_path):
    arguments = "--checkpoint", weights / "mae_tiny", "--images", photos, "--out", tmp_path
    assert call(*arguments) == 0
    found = np.load(tmp_path / "features.npz")
    assert found["valid"].tolist() == [True] * 5 + [False]
    assert Image.open(tmp_path / "reconstructions.png").size[0] > 3 * figures.MIN_CELL


def test_a_sheet_shows_images_above_captions_that_fit():
    images = np.zeros((7, 8, 8, 3), np.uint8)
    images[6] = 255
    sheet = figures.contact_sheet(images, ["a very long name of a class " * 3] * 7, columns=3)
    cell, row = 96 + figures.GAP, 96 + figures.GAP + figures.TEXT
    assert sheet.shape == (3 * row + figures.GAP, 3 * cell + figures.GAP, 3)
    assert sheet[10, 10].tolist() == [0] * 3
    assert sheet[2 * row + 10, 10].tolist() == [255] * 3
    gap = sheet[96 + figures.GAP : row, cell : cell + figures.GAP]
    assert (gap > 200).all()  # no caption runs into the next
