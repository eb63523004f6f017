"""The table of names against the converter of the parity tests and recorded files."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mae_jax.convert import param_names
from mae_jax.models import mae, vit
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.trees import flatten
from tests.parity import official

OLD, NEW = "hf_tiny_v4names/model.safetensors", "hf_tiny_saved_by_5_23/model.safetensors"


def equal(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name, strict=True)


def in_memory(name):
    """The name that transformers 5 has for a weight while it is loaded."""
    for old, new in (
        ("vit.encoder.layer.", "vit.layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = name.replace(old, new)
    return name


def test_official_names_and_layout():
    read = param_names.to_ours(load_file(official.path("mae_tiny.safetensors")))
    assert not read.unused and not read.incomplete
    tables = {name: read.arrays.pop(name) for name in ("pos_embed", "decoder_pos_embed")}
    assert tables["pos_embed"].shape == (1, 65, 48)
    equal(read.arrays, flatten(official.tiny_params()))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_official_classifier(pool):
    file = load_file(official.path(f"vit_tiny_gp{int(pool == 'mean')}.safetensors"))
    read = param_names.to_ours(file)
    equal(read.arrays, flatten(official.vit_params(pool)))
    equal(param_names.to_official(read.arrays), file)


@pytest.mark.parametrize("spelling", ["old", "saved by 5.23", "in memory of 5.23"])
def test_three_spellings_of_hugging_face(spelling):
    file = load_file(official.path(NEW if spelling.startswith("saved") else OLD))
    if spelling.startswith("in memory"):
        file = {in_memory(name): x for name, x in file.items()}
        assert "decoder.decoder_layers.0.attention.q_proj.weight" in file
    read = param_names.to_ours(file)
    assert not read.unused
    equal(read.arrays, param_names.to_ours(load_file(official.path("mae_tiny.safetensors"))).arrays)


def test_every_way_out_and_back_is_exact():
    file = load_file(official.path("mae_tiny.safetensors"))
    ours = param_names.to_ours(file).arrays
    equal(param_names.to_official(ours), file)
    equal(param_names.to_hugging_face(ours), load_file(official.path(OLD)))
    bare = param_names.to_hugging_face(
        {n: x for n, x in ours.items() if "decoder" not in n and n != "mask_token"}, prefix=""
    )
    assert "encoder.layer.0.attention.attention.query.weight" in bare
    assert not any(name.startswith("vit.") for name in bare)
    equal(param_names.to_ours(bare).arrays, {n: ours[n] for n in param_names.to_ours(bare).arrays})


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "_orig_mod.", "module.model."]
)
def test_prefixes_of_wrappers_are_taken_off(prefix):
    file = load_file(official.path("vit_tiny_gp0.safetensors"))
    wrapped = {prefix + name: x for name, x in file.items()} | {"neck.weight": np.zeros(2)}
    read = param_names.to_ours(wrapped)
    assert read.unused == ["neck.weight"]
    equal(read.arrays, param_names.to_ours(file).arrays)


def test_names_and_biases_of_mae_pytorch():
    """pengzhiliang/MAE-pytorch: parts by prefix, and no bias of the keys (BEiT's blocks)."""
    file = load_file(official.path("mae_tiny.safetensors"))
    theirs = {}
    for name, x in file.items():
        if name.endswith("attn.qkv.bias"):
            q, k, v = np.split(x, 3)
            parts = {"q_bias": q, "v_bias": v}
        else:
            parts = {"": x}
        for part, value in parts.items():
            new = name.replace("qkv.bias", part) if part else name
            if name.startswith("decoder_blocks"):
                new = new.replace("decoder_", "decoder.", 1)
            elif name.startswith("decoder_embed"):
                new = new.replace("decoder_embed", "encoder_to_decoder")
            elif name.startswith(("decoder_norm", "decoder_pred")):
                new = new.replace("decoder_", "decoder.").replace("pred", "head")
            elif not name.startswith(("mask_token", "decoder_pos")):
                new = f"encoder.{new}"
            theirs[new] = value
    assert "encoder.blocks.0.attn.q_bias" in theirs and "decoder.head.weight" in theirs
    read = param_names.to_ours(theirs)
    assert not read.unused and not read.incomplete
    expected = param_names.to_ours(file).arrays
    for name, x in expected.items():
        if name.endswith("attn/qkv/bias"):
            third = len(x) // 3
            x = np.concatenate([x[:third], np.zeros(third, np.float32), x[2 * third :]])
        np.testing.assert_array_equal(read.arrays[name], x, err_msg=name)


def test_a_probe_keeps_its_batch_norm():
    rng = np.random.default_rng(0)
    ours = {
        "head/kernel": rng.normal(size=(6, 3)).astype(np.float32),
        "head/bias": np.zeros(3, np.float32),
        "batch_norm/mean": rng.normal(size=6).astype(np.float32),
        "batch_norm/var": np.ones(6, np.float32),
    }
    file = param_names.to_official(ours)
    assert sorted(file) == [
        "head.0.running_mean",
        "head.0.running_var",
        "head.1.bias",
        "head.1.weight",
    ]
    equal(param_names.to_ours(file | {"head.0.num_batches_tracked": np.array(7)}).arrays, ours)


def test_what_is_not_known_is_not_used_and_a_part_alone_is_not_enough():
    file = load_file(official.path(OLD))
    del file["vit.encoder.layer.1.attention.attention.key.weight"]
    file |= {"pooler.dense.weight": np.zeros((2, 2)), "blocks.0.ls1.gamma": np.zeros(2)}
    read = param_names.to_ours(file)
    assert read.unused == ["blocks.0.ls1.gamma"]
    assert read.incomplete == ["blocks_1/attn/qkv/kernel"]
    assert "blocks_1/attn/qkv/kernel" not in read.arrays
    with pytest.raises(ValueError, match="twice"):
        param_names.to_ours(
            file | {"norm.weight": np.zeros(48), "vit.layernorm.weight": np.zeros(48)}
        )
    with pytest.raises(ValueError, match="have no fc_norm"):
        param_names.to_hugging_face({"fc_norm/scale": np.zeros(4)})


@pytest.mark.parametrize("size,blocks,number", [("B", 12, 150), ("L", 24, 294), ("H", 32, 390)])
def test_number_of_arrays_of_the_released_files(size, blocks, number):
    """150 of an encoder and 254 of a whole ViT-B (docs of the Hugging Face and timm models)."""
    dim, depth, heads = vit.SIZES[size]
    encoder = VisionTransformer((32, 32), (16, 16), 3, dim, depth, heads, num_classes=0)
    shapes = flatten(jax.eval_shape(lambda: vit.init_variables(encoder, jax.random.key(0)))[0])
    arrays = {name: np.zeros(x.shape[:1] + (1,) * (len(x.shape) - 1)) for name, x in shapes.items()}
    assert depth == blocks and len(param_names.to_official(arrays)) == number
    whole = MaskedAutoencoder((32, 32), (16, 16), 3, dim, depth, heads)
    shapes = flatten(jax.eval_shape(lambda: mae.init_params(whole, jax.random.key(0))))
    assert len(shapes) + 2 == number + 104  # and two tables, which are constants here
