"""Weights that come with mae_jax."""

import json
import os

import numpy as np
import pytest

import mae_jax
from mae_jax import convert
from mae_jax.checkpoint import released
from mae_jax.runtime.errors import UsageError
from mae_jax.tools import convert as convert_tool
from mae_jax.tools import inspect
from mae_jax.train import initial_state
from tests.parity import official

NAME = "clothing-96"


def garment(size):
    """A dark shirt on a light floor: uint8 [1, H, W, 3]."""
    image = np.full((1, size, size, 3), 205, np.uint8)
    image[:, size // 5 : -size // 8, size // 3 : -size // 3] = (45, 55, 80)
    image[:, size // 5 : size // 2, size // 8 : -size // 8] = (45, 55, 80)
    return image


def test_it_is_loaded_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = mae_jax.load(NAME)
    assert repr(model).startswith(f"<Pretrained {NAME}, step ")
    image = garment(model.image_size[0])
    features = model.features(image)
    assert features.shape == (1, 128) and features.dtype == np.float32
    assert {x.dtype.name for x in model.params.values()} == {"float32"}


def test_it_reconstructs_what_is_hidden():
    model = mae_jax.load(NAME)
    image = garment(model.image_size[0])
    found = model.reconstruct(image, seed=1)
    hidden = found.pasted != found.original
    error = np.abs(found.pasted.astype(float) - found.original)[hidden].mean()
    flat = np.abs(found.original.astype(float) - image.mean(axis=(1, 2)))[hidden].mean()
    assert error < 0.5 * flat


def test_commands_take_the_name(capsys):
    assert inspect.main([NAME]) == 0
    assert "matched 108 of 108 parameters" in capsys.readouterr().out
    initial_state.check_init_from(NAME)


def test_a_folder_of_that_name_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError, match=f"no checkpoint under {tmp_path}/{NAME}"):
        mae_jax.load(NAME)


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"by name: {NAME}"):
        mae_jax.load("clothing-69")


@pytest.mark.parametrize("name", released.names())
def test_it_is_small_and_described_and_names_no_folder(name):
    path = released.locate(name)
    assert os.path.getsize(path) <= 4_000_000
    metadata = convert.load(path).metadata
    assert '"/' not in json.dumps(metadata)
    assert metadata["provenance"]["license"] == "apache-2.0"
    with open(path.replace(".safetensors", ".md"), encoding="utf-8") as file:
        card = file.read()
    assert f'mae_jax.load("{name}")' in card
    assert f"{metadata['step']:,} updates" in card
    assert "loss on the 341 validation photos" in card


def test_a_release_is_half_precision_without_folders(tmp_path):
    source, target = official.path("mae_tiny.safetensors"), tmp_path / "released.npz"
    flags = ["--num_heads=3", "--decoder_num_heads=2", "--norm_pix_loss=true", "--release"]
    assert convert_tool.main([f"--from={source}", f"--to={target}", *flags]) == 0
    with np.load(target) as file:
        assert {file[x].dtype for x in file.files if x != "mae_jax"} == {np.dtype(np.float16)}
    model = convert.load(str(target))
    original = convert.load(source, hints=convert.Hints(3, 2, normalize=True))
    for name, x in original.params.items():
        np.testing.assert_allclose(model.params[name], x, rtol=1e-3, atol=1e-6)
        assert model.params[name].dtype == np.float32
    assert '"/' not in json.dumps(model.metadata)
