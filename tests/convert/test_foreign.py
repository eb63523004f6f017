"""Files as other programs leave them: odd names, wrappers, averages, further tokens."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_jax import convert
from mae_jax.convert import param_names, readers
from mae_jax.runtime.errors import UsageError
from mae_jax.tools import inspect
from tests.convert.test_torch_pickle import archive
from tests.parity import official

CLASSIFIER = convert.Hints(num_heads=3)
VIT = official.path("vit_tiny_gp0.safetensors")


def save_pth(path, content):
    """Writes nested dicts of arrays and texts as torch.save does."""
    numbers = []

    def tensor(x):
        key, strides = len(numbers), np.array(x.strides) // 4
        numbers.append((f"data/{key}", np.ascontiguousarray(x, np.float32).tobytes()))
        storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{x.size}\ntQI0\n"
        size, stride = ("".join(f"I{n}\n" for n in values) for values in (x.shape, strides))
        return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}({size}t({stride}tI00\nNtR"

    def pickled(value):
        if isinstance(value, dict):
            return "(d" + "".join(f"S'{k}'\n{pickled(x)}s" for k, x in value.items())
        return tensor(value) if isinstance(value, np.ndarray) else f"S'{value}'\n"

    return archive(path, (pickled(content) + ".").encode(), numbers)


def average(arrays):
    return {name: x + np.float32(1) for name, x in arrays.items()}


def bias(path, **options):
    return convert.load(str(path), hints=CLASSIFIER, **options).params["head/bias"]


@pytest.mark.parametrize(
    "source, name",
    [
        ("micro_training.pth", "checkpoint.pth.tar"),
        ("micro_training.pth", "epoch=9.ckpt"),
        ("micro_training.pth", "no_ending"),
        ("micro_training.pth", "wrong.safetensors"),
        ("vit_tiny_gp0.safetensors", "no_ending"),
        ("vit_tiny_gp0.safetensors", "wrong.pth"),
        ("vit_tiny_gp0.safetensors", "wrong.npz"),
    ],
)
def test_a_file_is_what_its_content_says(tmp_path, source, name):
    shutil.copy(official.path(source), tmp_path / name)
    hints = convert.Hints(num_heads=2, decoder_num_heads=1) if "micro" in source else CLASSIFIER
    found, expected = (
        convert.load(str(path), hints=hints) for path in (tmp_path / name, official.path(source))
    )
    assert found.report.kind == expected.report.kind == source.rpartition(".")[2]
    assert found.params.keys() == expected.params.keys()
    assert inspect.describe(str(tmp_path / name))["checkpoint"] == str(tmp_path / name)


def test_an_npz_is_one_under_any_name(tmp_path):
    np.savez(tmp_path / "x.npz", **load_file(VIT))
    (tmp_path / "x.npz").rename(tmp_path / "x")
    np.testing.assert_array_equal(bias(tmp_path / "x"), load_file(VIT)["head.bias"])


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_index_stands_for_the_files_that_it_lists(tmp_path, ending, with_config):
    folder = official.path("hf_tiny_v4names")
    arrays = load_file(f"{folder}/model.safetensors")
    parts = [dict(list(arrays.items())[i::2]) for i in range(2)]
    places = {}
    for i, part in enumerate(parts):
        name = f"model-{i}-of-2.{ending}"
        if ending == "bin":
            save_pth(tmp_path / name, part)
        else:
            save_file(part, tmp_path / name)
        places |= dict.fromkeys(part, name)
    stem = "pytorch_model.bin" if ending == "bin" else "model.safetensors"
    index = tmp_path / f"{stem}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    if with_config:
        shutil.copy(f"{folder}/config.json", tmp_path)
        expected = convert.load(folder)
        found = [convert.load(str(path)) for path in (index, tmp_path)]
    else:
        hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=False)
        expected = convert.load(f"{folder}/model.safetensors", hints=hints)
        found = [convert.load(str(index), hints=hints)]
    for model in found:
        model.report.check()
        assert model.params.keys() == expected.params.keys()
        for name, x in expected.params.items():
            np.testing.assert_array_equal(model.params[name], x)


def test_what_is_no_file_of_weights_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UsageError, match=r"config\.json .*names None, .* no file of weights"):
        convert.load(str(tmp_path / "config.json"))
    with pytest.raises(UsageError, match="/dev/zero is not a regular file"):
        convert.load("/dev/zero")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UsageError, match="empty is damaged, or not a PyTorch file"):
        convert.load(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.module.", "net.", "backbone.", "a.b.c.", "encoder.encoder.", "visual."]
)
@pytest.mark.parametrize("source", ["vit_tiny_gp0.safetensors", "hf_tiny_v4names"])
def test_whatever_stands_before_the_names_is_taken_off(source, prefix):
    path = official.path(source) + "/model.safetensors" * ("hf" in source)
    arrays = load_file(path)
    wrapped = {prefix + name: x for name, x in arrays.items()} | {"neck.weight": np.zeros(2)}
    read, expected = param_names.to_ours(wrapped), param_names.to_ours(arrays)
    assert read.unused == ["neck.weight"] and read.arrays.keys() == expected.arrays.keys()


def test_two_models_in_one_file_are_shown_by_their_first_names(tmp_path):
    arrays = load_file(VIT)
    both = {f"{part}.{name}": x for part in ("base", "momentum") for name, x in arrays.items()}
    save_file(both, tmp_path / "x.safetensors")
    with pytest.raises(UsageError) as caught:
        convert.load(str(tmp_path / "x.safetensors"), hints=CLASSIFIER)
    text = str(caught.value)
    assert f"only {len(arrays)} of its {len(both)} names" in text
    assert ", ".join(list(load_file(tmp_path / "x.safetensors"))[:5]) in text


@pytest.mark.parametrize(
    "key, inside",
    [("state_dict_ema", ()), ("model_ema", ("module",)), ("ema", ("state_dict",)), ("teacher", ())],
)
def test_averages_inside_a_file_are_noted_and_taken_when_asked_for(tmp_path, key, inside):
    arrays = load_file(VIT)
    averages = average(arrays)
    for name in inside:
        averages = {name: averages}
    path = save_pth(tmp_path / "x.pth", {"epoch": "3", "state_dict": arrays, key: averages})
    model = convert.load(path, hints=CLASSIFIER)
    assert model.averaged
    assert (
        f"the file also has averaged weights ({key}): convert --ema reads them"
        in model.report.notes
    )
    np.testing.assert_array_equal(bias(path), arrays["head.bias"])
    np.testing.assert_array_equal(bias(path, ema=True), arrays["head.bias"] + 1)
    assert f"averaged weights: {key}" in readers.read(path, ema=True).notes


def test_a_teacher_beside_a_student_and_averages_without_others(tmp_path):
    arrays = load_file(VIT)
    content = {"student": {f"module.backbone.{n}": x for n, x in arrays.items()}}
    content |= {"teacher": {f"backbone.{n}": x for n, x in average(arrays).items()}}
    path = save_pth(tmp_path / "dino.pth", content)
    np.testing.assert_array_equal(bias(path), arrays["head.bias"])
    np.testing.assert_array_equal(bias(path, ema=True), arrays["head.bias"] + 1)
    path = save_pth(tmp_path / "only.pth", {"ema": average(arrays)})
    for ema in (False, True):
        model = convert.load(path, hints=CLASSIFIER, ema=ema)
        assert "averaged weights: ema (the file has no others)" in model.report.notes
        assert not model.averaged
    path = save_pth(tmp_path / "none.pth", {"model": arrays, "epoch": "3"})
    with pytest.raises(UsageError, match="has no averaged weights .*it has model, epoch"):
        convert.load(path, hints=CLASSIFIER, ema=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"reg_token": np.zeros((1, 4, 48))},
            r"tokens besides .*reg_token \(1, 4, 48\); registers",
        ),
        ({"net.register_tokens": np.zeros((1, 4, 48))}, "net.register_tokens .1, 4, 48."),
        ({"dist_token": np.zeros((1, 1, 48))}, "dist_token .1, 1, 48."),
        ({"cls_token": None, "pos_embed": np.ones((1, 64, 48))}, "no class token, .* 64 positions"),
        ({"cls_token": None, "pos_embed": np.ones((1, 60, 48))}, "no class token, .* 60 positions"),
        ({"pos_embed": np.ones((1, 64, 48))}, "63 positions .*its class token has no position"),
    ],
)
def test_further_tokens_or_none_of_a_class_are_named(tmp_path, changes, message):
    arrays = {k: x for k, x in (load_file(VIT) | changes).items() if x is not None}
    save_file({k: np.asarray(x, np.float32) for k, x in arrays.items()}, tmp_path / "x.safetensors")
    for hints in (CLASSIFIER, CLASSIFIER._replace(image_size=(32, 32))):
        with pytest.raises(UsageError, match=message if hints is CLASSIFIER else "cannot be used"):
            convert.load(str(tmp_path / "x.safetensors"), hints=hints)


@pytest.mark.parametrize("classes", [10, 0])
def test_the_card_of_a_classifier_is_one(tmp_path, classes):
    model = convert.load(VIT, hints=CLASSIFIER)
    if not classes:
        model = convert.surgery.encoder_only(model)
    convert.save(model, str(tmp_path / "timm"), format="timm")
    card = (tmp_path / "timm" / "README.md").read_text()
    assert ("- image-classification\n" in card) == ("argmax" in card) == bool(classes)
    assert ("- image-feature-extraction\n" in card) == (not classes)
