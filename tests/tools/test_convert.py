"""The convert command, and uses of its output."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mae_jax import convert, inference
from mae_jax.checkpoint import reader
from mae_jax.convert import official_release, param_names, surgery
from mae_jax.convert.save import with_tables
from mae_jax.runtime.cli import run_command
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.knn import Knn
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools import convert as tool
from mae_jax.tools import evaluate
from mae_jax.train import loop
from mae_jax.train.initial_state import read_initial
from tests.helpers import tiny_configs
from tests.parity import official

MAE = official.path("mae_tiny.safetensors")
HEADS = ["--num_heads", "3", "--decoder_num_heads", "2"]
KEYS = ("image_size", "patch_size", "embed_dim", "depth", "num_heads")
MODEL = {f"model__{key}": official.TINY[key] for key in KEYS}
DECODER = {f"model__{k}": x for k, x in official.TINY.items() if k.startswith("decoder")}


def command(source, to, *more):
    return tool.main(["--from", str(source), "--to", str(to), *more])


def test_the_command_reports_and_writes(tmp_path, capsys):
    out = tmp_path / "hf"
    more = ["--format", "hf", "--norm_pix_loss", "true", "--license", "cc0-1.0"]
    assert command(MAE, out, *HEADS, *more) == 0
    text = capsys.readouterr().out
    assert "matched 74 of 74 parameters (safetensors)" in text
    assert "target normalized patches" in text and "94 arrays (ViTMAEForPreTraining)" in text
    assert "license: cc0-1.0, which also applies to derived weights" in text
    assert json.loads((out / "config.json").read_text())["norm_pix_loss"] is True
    assert (out / "README.md").read_text().startswith("---\nlicense: cc0-1.0")


def test_bad_commands_are_one_line(tmp_path, capsys):
    for more, error in (
        ([], "--num_heads"),
        ([*HEADS, "--format", "onnx"], "--format=onnx is not one of mae, hf"),
        ([*HEADS, "--ema"], "has no averaged weights"),
        ([*HEADS, "--fc_norm"], "add --encoder_only"),
        ([*HEADS, "--resample_patch", "6"], "add --encoder_only"),
        ([*HEADS, "--channels", "1"], "--channel_policy of convert"),
        ([*HEADS, "--channels", "0", "--channel_policy", "mean"], "channels=0 must be positive"),
        ([*HEADS, "--resize", "32", "32", "32"], "must be one number, or height and width"),
        ([*HEADS, "--format", "official"], "writes a file ending in .safetensors or .pth"),
        ([*HEADS, "--classes", "gone.txt"], "gone.txt"),
        ([*HEADS, "--classes", MAE + ".txt"], "cannot be read"),
        ([*HEADS, "--encoder_only"], "need a decoder, and this model has none"),
        ([*HEADS, "--mean", "0.5"], "give --mean for each of them"),
    ):
        assert run_command(lambda more=more: command(MAE, tmp_path / "out", *more)) == 2
        assert error in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_changes_follow_each_other(tmp_path):
    more = ["--encoder_only", "--channels", "1", "--channel_policy", "mean", "--fc_norm"]
    sizes = ["--resample_patch", "6", "--resize", "48", "72"]
    assert command(MAE, tmp_path / "out", *HEADS[:2], *more, *sizes, "--format", "timm") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["global_pool"] == "avg" and config["num_classes"] == 0
    assert (
        config["model_args"] | {"img_size": [48, 72], "patch_size": 6, "in_chans": 1}
        == config["model_args"]
    )
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    assert arrays["pos_embed"].shape == (1, 97, 48) and "fc_norm.weight" in arrays
    assert arrays["patch_embed.proj.weight"].shape == (48, 1, 6, 6)


def test_missing_parameters_are_named_and_start_from_scratch(tmp_path, capsys):
    arrays = load_file(official.path("vit_tiny_gp0.safetensors"))
    del arrays["cls_token"]
    path, out = tmp_path / "part.safetensors", tmp_path / "part"
    save_file(arrays, path)
    assert run_command(lambda: command(path, out, "--num_heads", "3")) == 2
    assert "missing ['cls_token']" in capsys.readouterr().err
    assert command(path, out, "--num_heads", "3", "--allow_missing", "cls*") == 0
    assert convert.load(str(out)).metadata["missing"] == ["cls_token"]
    with pytest.raises(UsageError, match="needs all parameters; missing: "):
        command(out, tmp_path / "hf", "--format", "hf_vit")
    config = tiny_configs.classify_config(init_from=str(out), steps=1, **MODEL)
    assert loop.run(Classify(config, str(tmp_path / "run")), config, str(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert report["fresh"] == [
        "cls_token",
        "fc_norm/bias",
        "fc_norm/scale",
        "head/bias",
        "head/kernel",
    ]


def _md5(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@pytest.mark.parametrize("form", ["official", "hf", "folder"])
def test_pre_training_starts_from_weights_of_any_form(tmp_path, monkeypatch, form):
    source = {"official": MAE, "hf": official.path("hf_tiny_v4names"), "folder": tmp_path / "w"}[
        form
    ]
    if form == "folder":
        assert command(MAE, source, *HEADS) == 0
    elif form == "official":
        monkeypatch.setitem(official_release._MD5, "mae_visualize_vit_base", _md5(MAE)[:6])
    config = tiny_configs.config(init_from=str(source), steps=1, **MODEL, **DECODER)
    workdir = str(tmp_path / "run")
    assert loop.run(Pretrain(config, workdir), config, workdir)
    report = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert len(report["matched"]) == 72 and not report["fresh"] and not report["unused"]
    # The learning rate of the first update is 0, so the saved weights are those that were read.
    expected = convert.load(official.path("hf_tiny_v4names")).params
    for name, x in convert.load(workdir).params.items():
        np.testing.assert_array_equal(x, expected[name])
    if form != "official":
        return
    # Derived weights keep the license, over any number of runs and wherever a step is copied.
    origin = convert.load(workdir).metadata.get("provenance", {})
    again = tiny_configs.config(init_from=workdir, steps=1, **MODEL, **DECODER)
    assert loop.run(Pretrain(again, str(tmp_path / "b")), again, str(tmp_path / "b"))
    shutil.copytree(tmp_path / "b" / "checkpoints" / "1", tmp_path / "copy")
    for path in (tmp_path / "b", tmp_path / "copy"):
        assert convert.load(str(path)).metadata["provenance"] == origin
    resumed = tiny_configs.config(resume=str(tmp_path / "b"), steps=2, **MODEL, **DECODER)
    workdir = str(tmp_path / "c")
    loop.run(Pretrain(resumed, workdir), resumed, workdir, allow_config_change=True)
    assert convert.load(workdir).metadata["provenance"] == origin
    assert origin == {"began_with": "mae_visualize_vit_base", "license": "cc-by-nc-4.0"}


def test_other_channels_need_a_policy(tmp_path):
    changes = {"model__channels": 1, "data__mean": (0.5,), "data__std": (0.5,)}
    config = tiny_configs.config(init_from=MAE, steps=1, **MODEL, **DECODER, **changes)
    with pytest.raises(UsageError, match="--config.init_channels"):
        loop.run(Pretrain(config, ""), config, str(tmp_path / "a"))
    config.init_channels = "mean"
    workdir = str(tmp_path / "b")
    assert loop.run(Pretrain(config, workdir), config, workdir)
    kernel = convert.load(workdir).params["patch_embed/proj/kernel"]
    expected = surgery.with_channels(convert.load(official.path("hf_tiny_v4names")), 1, "mean")
    np.testing.assert_array_equal(kernel, expected.params["patch_embed/proj/kernel"])


def test_unsuitable_weights_stop_a_run_before_anything_is_compiled(tmp_path):
    arrays = load_file(MAE) | {"blocks.0.ls1.gamma": np.ones(48, np.float32)}
    path = str(tmp_path / "more.safetensors")
    save_file(arrays, path)
    config = tiny_configs.config(init_from=path, steps=1, **MODEL, **DECODER)
    with pytest.raises(UsageError, match="unused .'blocks.0.ls1.gamma'"):
        loop.run(Pretrain(config, ""), config, str(tmp_path / "a"))
    config = tiny_configs.config(resume=str(tmp_path / "w"), steps=1, **MODEL, **DECODER)
    assert command(MAE, tmp_path / "w", *HEADS) == 0
    with pytest.raises(UsageError, match="weights without an optimizer state: start a new"):
        loop.run(Pretrain(config, ""), config, str(tmp_path / "b"))


def test_the_encoder_of_a_hugging_face_folder_is_probed(tmp_path):
    config = tiny_configs.classify_config(
        "knn", init_from=official.path("hf_tiny_v4names"), steps=0, **MODEL
    )
    workdir = str(tmp_path / "run")
    assert loop.run(Knn(config, workdir), config, workdir)
    assert 0 <= tiny_configs.metric_lines(workdir, "knn")[0]["top1"] <= 1


def test_an_official_classifier_is_evaluated(tmp_path, capsys):
    """Without class names the order of the folders is used, as in the official evaluation."""
    root = tmp_path / "val"
    for i in range(10):
        (root / f"n{i:04}").mkdir(parents=True)
        Image.new("RGB", (40, 40), (25 * i, 90, 40)).save(root / f"n{i:04}" / "0.png")
    weights = tmp_path / "weights"
    assert command(official.path("vit_tiny_gp1.safetensors"), weights, "--num_heads", "3") == 0
    arguments = [
        "--checkpoint",
        str(weights),
        "--images",
        str(root),
        "--out",
        str(tmp_path / "out"),
    ]
    assert evaluate.main(arguments) == 0
    assert "top1" in capsys.readouterr().out
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and "n0009" in rows[-1]["example"]
    model = inference.load(str(weights))
    features = model.features(model.load_images([row["example"] for row in rows]))
    logits = features @ model.params["head/kernel"] + model.params["head/bias"]
    assert [row["top1"] for row in rows] == [f"n{i:04}" for i in logits.argmax(axis=1)]
    with pytest.raises(UsageError, match="belongs to no run"):
        evaluate.main([*arguments[:2], *arguments[4:]])
    (root / "n0009" / "0.png").unlink()
    (root / "n0009").rmdir()
    names = tmp_path / "classes.txt"
    order = ["n0009", *(f"n{i:04}" for i in range(9))]
    names.write_text("\n".join(order), encoding="utf-16")
    assert evaluate.main([*arguments, "--classes", str(names)]) == 0
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8") as file:
        assert [row["top1"] for row in csv.DictReader(file)] == [
            order[i] for i in logits[:9].argmax(axis=1)
        ]
    names.write_text("n0000\n")
    with pytest.raises(UsageError, match="--classes has 1 names for the 10 classes"):
        evaluate.main([*arguments, "--classes", str(names)])
    with pytest.raises(UsageError, match="9 class folders, but the model has 10"):
        evaluate.main(arguments)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"n{i:04}" for i in range(10)))
    named = tmp_path / "named"
    more = ["--num_heads", "3", "--classes", str(names)]
    assert command(official.path("vit_tiny_gp1.safetensors"), named, *more) == 0
    assert evaluate.main(["--checkpoint", str(named), *arguments[2:]]) == 0  # nine of ten


def test_averaged_weights_are_exported_on_request(tmp_path):
    config = tiny_configs.classify_config(
        init_from="", steps=3, optim__ema=0.5, optim__warmup_epochs=0.0
    )
    workdir = str(tmp_path / "run")
    loop.run(Classify(config, workdir), config, workdir)
    for name, more in (("raw", []), ("ema", ["--ema"])):
        assert command(workdir, tmp_path / f"{name}.npz", *more) == 0
    raw, ema = (convert.load(str(tmp_path / f"{name}.npz")) for name in ("raw", "ema"))
    arrays = reader.load_arrays(workdir, ("params", "ema"))
    for found, part in ((raw, "params"), (ema, "ema")):
        np.testing.assert_array_equal(found.params["head/kernel"], arrays[part]["head"]["kernel"])
    assert not np.array_equal(raw.params["head/kernel"], ema.params["head/kernel"])
    assert raw.metadata["classes"] == ema.metadata["classes"] and len(raw.metadata["classes"]) > 1


def test_the_recipe_supplies_what_a_file_does_not_record(tmp_path):
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    five = surgery.with_channels(convert.load(MAE, hints=hints), 5, "repeat")
    path = str(tmp_path / "five.safetensors")
    save_file(param_names.to_official(with_tables(five)), path)  # without our metadata
    pixels = {"data__mean": (0.1, 0.2, 0.3, 0.4, 0.5), "data__std": (0.2,) * 5}
    config = tiny_configs.config(init_from=path, model__channels=5, **pixels, **MODEL, **DECODER)
    found = read_initial(config)
    assert found.metadata["data"]["mean"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert found.fields["num_heads"] == 3 and found.fields["decoder_num_heads"] == 2
    # Values in the file take precedence over the recipe.
    config = tiny_configs.config(
        init_from=official.path("hf_tiny_v4names"), **MODEL | {"model__num_heads": 4}
    )
    assert read_initial(config).fields["num_heads"] == 3
    # A classifier needs no hints for a decoder.
    found = read_initial(tiny_configs.classify_config(init_from=MAE, **MODEL))
    assert found.kind == "vit" and found.report.unused == []
