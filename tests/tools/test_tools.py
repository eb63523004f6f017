"""inspect and reconstruct, on a checkpoint of a real (tiny) run."""

import dataclasses
import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax import convert, inference
from mae_jax.checkpoint import checksums, layout, reader
from mae_jax.convert import surgery
from mae_jax.runtime.cli import run_command
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools import inspect, reconstruct
from mae_jax.train import loop
from tests.helpers import tiny_configs
from tests.parity import official


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("run"))
    config = tiny_configs.config(steps=2, target__normalize=True, checkpoint__every_steps=1)
    loop.run(Pretrain(config, workdir), config, workdir)
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_inspect_prints_text_or_json(run, capsys):
    assert inspect.main([run]) == 0
    text = capsys.readouterr().out
    assert "blocks_0/attn/qkv/kernel" in text and "24x72" in text
    assert "contents: encoder, decoder, optimizer state" in text
    assert "target.normalize         True" in text
    assert inspect.main([f"{run}/checkpoints/2", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["sha256"] in text
    assert info["metadata"]["step"] == 2
    params = reader.load_arrays(run)["params"]
    assert info["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert info["report"]["missing"] == []


def test_inspect_verifies_a_run_a_step_and_weights(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "1")
    shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / "3")
    shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / "corrupt-1")
    convert.save(convert.load(run), str(tmp_path / "weights"))

    def verify(path):
        status = run_command(lambda: inspect.main(["--verify", str(path)]))
        return status, capsys.readouterr().out.splitlines()

    status, lines = verify(copy)
    assert status == 1 and lines[1] == "step 2: 111 arrays, all sound"
    assert lines[0].startswith("corrupt-1: set aside") and len(lines) == 3
    assert lines[2] == "step 3: damaged: it contains step 2"
    assert verify(copy / "checkpoints" / "2") == (0, [lines[1]])
    assert verify(copy / "checkpoints" / "3") == (1, [lines[2]])
    assert verify(tmp_path / "weights") == (0, [f"{tmp_path}/weights: 36 arrays, all sound"])
    assert verify(tmp_path) == verify(official.path("mae_tiny.safetensors")) == (2, [])


def test_steps_saved_while_reading_are_not_mixed_in(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    first = convert.load(str(copy / "checkpoints" / "1"))
    (copy / "checkpoints" / "2").rename(tmp_path / "later")
    read = reader.read_metadata

    def save_step_2(found):
        metadata = read(found)
        if (tmp_path / "later").exists():
            (tmp_path / "later").rename(copy / "checkpoints" / "2")
        return metadata

    monkeypatch.setattr(reader, "read_metadata", save_step_2)
    found = convert.load(str(copy))
    assert found.metadata["step"] == 1
    for name, x in first.params.items():
        np.testing.assert_array_equal(found.params[name], x)
    (copy / "checkpoints" / "2").rename(tmp_path / "later")
    info = inspect.describe(str(copy))
    assert info["checkpoint"] == str(copy / "checkpoints" / "1")
    assert info["metadata"]["step"] == 1 and info["sha256"] == checksums.content_hash(first.params)
    assert inspect.describe(str(copy))["metadata"]["step"] == 2


def test_averages_are_those_of_the_same_step(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / "2").rename(tmp_path / "later")
    module, seen = importlib.import_module("mae_jax.convert.load"), []
    read = module._checkpoint

    def save_step_2(path, found, ema):
        seen.append((found.step, ema))
        if (tmp_path / "later").exists():
            (tmp_path / "later").rename(copy / "checkpoints" / "2")
        return dataclasses.replace(read(path, found, False), averaged=True)

    monkeypatch.setattr(module, "_checkpoint", save_step_2)
    convert.load_with_average(str(copy))
    assert seen == [(1, False), (1, True)]


def test_a_step_deleted_during_verification_is_not_damaged(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    gone = layout.find(str(copy / "checkpoints" / "1"))
    shutil.rmtree(gone.folder)
    assert inspect._verify_one(gone)
    assert "step 1: deleted by its run" in capsys.readouterr().out


def test_inspect_shows_files_of_other_projects(capsys):
    assert inspect.main([official.path("hf_tiny_v4names")]) == 0
    text = capsys.readouterr().out
    assert "matched 74 of 74 parameters (Hugging Face)" in text
    assert "blocks_2/attn/qkv/kernel" in text and "48x144" in text
    # The same weights have the same content hash, whatever file they are in.
    assert inspect.main([official.path("hf_tiny_saved_by_5_23")]) == 0
    assert text.splitlines()[-1] in capsys.readouterr().out
    # A file without a number of heads is shown too.
    assert inspect.main([official.path("mae_tiny.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "cannot be loaded as a model" in text and "--num_heads" in text
    assert "decoder_blocks.1.attn.qkv.weight" in text and "96x32" in text


def test_reconstruct_draws_every_image_at_every_ratio(run, photos, tmp_path, capsys):
    out = tmp_path / "out.png"
    arguments = ["--checkpoint", run, "--images", str(photos / "*.png"), "--out", str(out)]
    assert reconstruct.main([*arguments, "--mask_ratio", "0.5", "0.75"]) == 0
    assert "3 images" in capsys.readouterr().out
    both = np.asarray(Image.open(out))
    assert reconstruct.main(arguments) == 0
    one = np.asarray(Image.open(out))
    cell = 96 + 4
    assert both.shape[1] == 5 * cell + 4 and one.shape[1] == 3 * cell + 4
    assert reconstruct.main(arguments) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)), one)  # same seed, same image
    assert reconstruct.main([*arguments, "--raw"]) == 0
    raw = np.asarray(Image.open(out))
    assert raw.shape[1] == 4 * cell + 4
    np.testing.assert_array_equal(raw[:110, : 3 * cell], one[:110, : 3 * cell])
    assert reconstruct.main([*arguments, "--seed", "1"]) == 0
    assert not np.array_equal(np.asarray(Image.open(out)), one)


def test_reconstruct_with_a_mask_of_patches_or_of_pixels(run, photos, tmp_path):
    out = tmp_path / "out.png"
    arguments = ["--checkpoint", run, "--images", str(photos / "*.png"), "--out", str(out)]
    mask = np.array([[1, 1, 0, 0]] * 4)
    np.save(tmp_path / "mask.npy", mask)
    assert reconstruct.main([*arguments, "--mask", str(tmp_path / "mask.npy")]) == 0
    picture = np.asarray(Image.open(out)).astype(int)
    left, right = 4 + 100, 4 + 100 + 48  # the second column, masked
    assert (np.abs(picture[18:114, left : left + 48] - 128) <= 1).all()
    original = picture[18:114, 4 + 48 : 4 + 96]
    np.testing.assert_array_equal(picture[18:114, right : right + 48], original)
    # An image, white where patches are hidden; resized and cropped like the input images.
    drawn = np.zeros((160, 320), np.uint8)
    drawn[:, :160], drawn[:, 160:170] = 255, 255  # the third column of patches is not half white
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    model = inference.load(run)
    np.testing.assert_array_equal(reconstruct.read_mask(str(tmp_path / "mask.png"), model), mask)
    with pytest.raises(UsageError, match="leave out --mask_ratio"):
        reconstruct.main([*arguments, "--mask", "x.npy", "--mask_ratio", "0.5"])
    with pytest.raises(UsageError, match=r"x\.npy cannot be read"):
        reconstruct.main([*arguments, "--mask", "x.npy"])
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    Image.fromarray(ramp).save(tmp_path / "photo.png")
    with pytest.raises(UsageError, match="looks like a photo"):
        reconstruct.main([*arguments, "--mask", str(tmp_path / "photo.png")])
    with pytest.raises(UsageError, match=r"must end in \('.png'"):
        reconstruct.main([*arguments[:-1], str(tmp_path / "out")])


def test_reconstruct_with_several_mask_kinds(run, photos, tmp_path):
    out = tmp_path / "out.png"
    arguments = ["--checkpoint", run, "--images", str(photos / "*.png"), "--out", str(out)]
    assert reconstruct.main([*arguments, "--mask_kind", "random", "block", "grid"]) == 0
    picture = np.asarray(Image.open(out)).astype(int)
    cell = 96 + 4
    assert picture.shape[1] == 7 * cell + 4
    grid = picture[18 : 18 + 96, 4 + 5 * cell : 4 + 5 * cell + 96].reshape(4, 24, 4, 24, 3)
    gray = (np.abs(grid - 128) <= 1).all(axis=(1, 3, 4))
    np.testing.assert_array_equal(gray, np.tile([[0, 1], [1, 1]], (2, 2)))
    kinds = ["--mask_kind", "random", "grid", "--mask_ratio", "0.75", "0.5"]
    with pytest.raises(UsageError, match=r"grid keeps one .* not 8.*\(--mask_ratio=0.5\)"):
        reconstruct.main([*arguments, *kinds])


def test_reconstruct_hides_what_has_priority(run, photos, tmp_path):
    out = tmp_path / "out.png"
    arguments = ["--checkpoint", run, "--images", str(photos / "*.png"), "--out", str(out)]
    arguments += ["--mask_ratio", "0.5"]
    priority = np.arange(16.0).reshape(4, 4)  # the lower half
    np.save(tmp_path / "priority.npy", priority)
    pixels = np.repeat(np.repeat(priority * 16, 40, axis=0), 40, axis=1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "priority.png")
    model = inference.load(run)
    read = reconstruct.read_priority(str(tmp_path / "priority.png"), model)
    assert read.shape == (4, 4) and (np.diff(read.reshape(-1)) > 10).all()
    for name in ("priority.npy", "priority.png"):
        assert reconstruct.main([*arguments, "--priority", str(tmp_path / name)]) == 0
        masked = np.asarray(Image.open(out)).astype(int)[18:114, 4 + 100 : 4 + 196]
        assert (np.abs(masked[48:] - 128) <= 1).all()
        assert (np.abs(masked[:48] - 128) > 1).any(axis=2).mean() > 0.9
    with pytest.raises(UsageError, match="leave out --mask_kind"):
        reconstruct.main([*arguments, "--priority", "x.npy", "--mask_kind", "grid"])
    with pytest.raises(UsageError, match=r"--priority: x\.npy cannot be read"):
        reconstruct.main([*arguments, "--priority", "x.npy"])
    np.save(tmp_path / "text.npy", np.array(["a"] * 16))
    with pytest.raises(UsageError, match=r"text\.npy contains <U1, not numbers"):
        reconstruct.main([*arguments, "--priority", str(tmp_path / "text.npy")])


def test_reconstruct_accepts_any_weights_with_a_decoder(run, photos, tmp_path):
    out = tmp_path / "out.png"
    arguments = ["--images", str(photos / "*.png"), "--out", str(out)]
    assert reconstruct.main(["--checkpoint", run, *arguments]) == 0
    expected = np.asarray(Image.open(out))
    model = convert.load(run)
    for name, format in (("a", "mae"), ("a.npz", "npz"), ("a.safetensors", "official")):
        convert.save(model, str(tmp_path / name), format=format)
        assert reconstruct.main(["--checkpoint", str(tmp_path / name), *arguments]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(out)), expected)
    assert reconstruct.main(["--checkpoint", official.path("hf_tiny_v4names"), *arguments]) == 0
    convert.save(surgery.encoder_only(convert.load(run)), str(tmp_path / "encoder"))
    with pytest.raises(
        UsageError, match=r"no decoder weights in .*encoder \(encoder-only export\)"
    ):
        reconstruct.main(["--checkpoint", str(tmp_path / "encoder"), *arguments])


def test_reconstructions_of_folders_lists_and_files(run, photos, tmp_path, monkeypatch, capsys):
    shown = []
    blank = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(reconstruct, "draw", lambda m, files, **_: shown.append(files) or blank)
    shutil.copy(photos / "0.png", tmp_path / "shot[0].png")
    (tmp_path / "list.txt").write_text(f"{photos}/2.png\n{photos}/1.png\n")
    out = str(tmp_path / "out.png")
    for images in (photos, f"{photos}/[01].png", tmp_path / "shot[0].png", tmp_path / "list.txt"):
        arguments = ["--checkpoint", run, "--images", str(images), "--out", out]
        assert reconstruct.main([*arguments, "--max_images=2"]) == 0
    first = [f"{photos}/0.png", f"{photos}/1.png"]
    assert shown[:3] == [first, first, [f"{tmp_path}/shot[0].png"]]
    assert shown[3] == [f"{photos}/2.png", f"{photos}/1.png"]
    assert "2 images of 3 (--max_images)" in capsys.readouterr().out


def test_bad_input_is_named(run, photos, tmp_path):
    arguments = ["--checkpoint", run, "--out", str(tmp_path / "x.png"), "--images"]
    with pytest.raises(UsageError, match="no file matches"):
        reconstruct.main([*arguments, str(tmp_path / "*.jpg")])
    with pytest.raises(UsageError, match="no images under"):
        reconstruct.main([*arguments, str(tmp_path)])
    with pytest.raises(UsageError, match="no checkpoint under"):
        inspect.main([str(tmp_path)])
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    with pytest.raises(UsageError, match="text.png"):
        reconstruct.draw(inference.load(run), [str(tmp_path / "text.png")])
    with pytest.raises(UsageError, match="mask ratio 1.5"):
        reconstruct.draw(inference.load(run), [str(photos / "0.png")], ratios=[1.5])
