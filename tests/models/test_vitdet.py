"""The detection backbone against detectron2, from recorded numbers; and its parts."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.convert import detectron2
from mae_jax.models import vitdet
from mae_jax.models.vit import SIZES, VisionTransformer
from mae_jax.models.vitdet import GridBlock, SimpleFeaturePyramid, ViTDet
from mae_jax.ops.trees import flatten, unflatten
from tests.parity import official

TINY = {
    "image_size": (128, 128),
    "patch_size": (16, 16),
    "channels": 3,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 4,
    "window": 3,
    "global_blocks": (1, 3),
    "table_grid": (4, 4),
}
PYRAMID = SimpleFeaturePyramid(16)


def close(ours, theirs, rtol, atol, message=""):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol, atol, err_msg=message)


def block_params(ref, case):
    prefix = "backbone.net.blocks.0."
    named = {prefix + k: v for k, v in official.subset(ref, f"{case}/param/").items()}
    return unflatten(detectron2.to_ours(named).arrays)["backbone"]["blocks_0"]


def block(case, **changes):
    fields = {"grid": (7, 11), "window": 5 * (case == "window"), "query_chunk": 30}
    return GridBlock(2, 4.0, jnp.float32, **fields | changes)


@pytest.fixture(scope="module")
def block_ref():
    return official.arrays("detection/a_window_attention.npz")


def attend(module, method):
    return method == "attend"


@pytest.mark.parametrize("case", ["window", "global"])
def test_one_block_and_its_gradients_match(block_ref, case):
    """P2, P3 and P5: a map of 7 x 11 in windows of 5; padded keys take part."""
    ref, model, params = block_ref, block(case), block_params(block_ref, case)

    def run(params, x):
        out, captured = model.apply({"params": params}, x, capture_intermediates=attend)
        return (out * ref["grad_weight"]).sum(), (captured["intermediates"]["attend"][0], out)

    ((_, (attn, out)), (grads, grad_x)) = jax.jit(
        jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    )(params, jnp.asarray(ref["block_x"]))
    close(attn, ref[f"{case}/attn_only"], 1e-4, 5e-5)
    close(out, ref[f"{case}/out"], 1e-4, 5e-5)
    close(grad_x, ref[f"{case}/grad_x"], 1e-3, 2e-4)
    for axis in "hw":
        name = f"rel_pos_{axis}"
        close(grads["attn"][name], ref[f"{case}/grad_{name}"], 1e-3, 2e-4)
    close(grads["attn"]["qkv"]["kernel"].T, ref[f"{case}/grad_qkv_weight"], 1e-3, 2e-4)


def test_drop_path_drops_a_branch_of_a_whole_image(block_ref):
    """P5: one draw for the windows of an image."""
    ref, params = block_ref, block_params(block_ref, "window")
    model, noise = block("window", drop_path=0.5), jnp.array([[0.1, 0.2], [0.9, 0.1]])
    run = jax.jit(lambda x: model.apply({"params": params}, x, None, noise))
    x = ref["block_x"]
    out = run(jnp.asarray(x))
    np.testing.assert_array_equal(out[0], x[0])
    close(out[1], x[1] + 2 * ref["window/attn_only"][1], 1e-4, 1e-4)


@pytest.fixture(scope="module")
def ref():
    return official.arrays("detection/b_backbone.npz")


@pytest.fixture(scope="module")
def params(ref):
    read = detectron2.to_ours(
        {f"backbone.{name}": x for name, x in official.subset(ref, "param/").items()}
    )
    assert not read.unused
    return unflatten(read.arrays)


def forward(params, images, **changes):
    model = ViTDet(**TINY | changes)
    backbone = {"params": params["backbone"]}
    embedded = model.apply(backbone, images, method=model.embed)
    maps = model.apply(backbone, images, (0, 1, 2, 3), method=model.features)
    levels = PYRAMID.apply({"params": params["pyramid"]}, maps[-1])
    return embedded, maps, levels


# Three rows of six at a time: the last chunk is smaller.
@pytest.mark.parametrize(
    "case, changes", [("in0", {}), ("in1", {"remat": "blocks", "query_chunk": 18})]
)
def test_maps_pyramid_and_gradients_match(ref, params, case, changes):
    """P1, P2, P3 (in1: 8 x 6 tokens with tables for 8 x 8) and P24."""
    data = official.subset(ref, f"{case}/")
    images = jnp.asarray(data["x"].transpose(0, 2, 3, 1))
    random = np.random.RandomState(77 + int(case[-1]))
    shapes = [data[f"p{level}"].shape for level in range(2, 7)]
    weights = [random.standard_normal(shape).astype(np.float32) for shape in shapes]

    def scalar(params):
        embedded, maps, levels = forward(params, images, **changes)
        pairs = zip(levels, weights, strict=True)
        total = sum((x * w.transpose(0, 2, 3, 1)).mean() for x, w in pairs)
        return total, (embedded, maps, levels)

    (total, (embedded, maps, levels)), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(
        params
    )
    close(embedded, data["embedded"], 1e-4, 5e-5)
    for i, x in enumerate(maps):
        close(x, data[f"block{i}"], 1e-3, 2e-4, f"block {i}")
    for i, x in enumerate(levels):
        close(x.transpose(0, 3, 1, 2), data[f"p{2 + i}"], 1e-3, 2e-4, f"p{2 + i}")
    np.testing.assert_array_equal(levels[4], levels[3][:, ::2, ::2])
    close(total, data["scalar"], 1e-3, 2e-4)
    theirs = detectron2.to_detectron2(flatten(grads))
    for name, grad in official.subset(data, "grad/").items():
        bound = 1e-4 * np.abs(grad).max() + 1e-7
        close(theirs[f"backbone.{name}"], grad, 1e-3, bound, name)


def released(size):
    """Backbone and pyramid of a released configuration."""
    return ViTDet((1024, 1024), (16, 16), 3, **SIZES[size]._asdict()), SimpleFeaturePyramid()


@pytest.mark.parametrize("size", ["B", "L", "H"])
def test_parameters_are_those_of_the_released_models(size):
    with open(official.path("detection/n_parameters_optimizer.json"), encoding="utf-8") as file:
        theirs = json.load(file)[size.lower()]
    model, pyramid = released(size)

    def init():
        key, x = jax.random.key(0), jnp.zeros((1, 64, 64, 3))
        grown = jnp.zeros((1, 4, 4, model.embed_dim))
        return {
            "backbone": model.init(key, x)["params"],
            "pyramid": pyramid.init(key, grown)["params"],
        }

    ours = {name: x.shape for name, x in flatten(jax.eval_shape(init)).items()}
    backbone = {row[0]: row[1] for row in theirs["table"] if row[0].startswith("backbone.")}
    read = detectron2.to_ours({k: np.broadcast_to(np.float32(), v) for k, v in backbone.items()})
    assert not read.unused
    assert ours == {name: x.shape for name, x in read.arrays.items()}
    vit = sum(math.prod(shape) for name, shape in ours.items() if name.startswith("backbone/"))
    assert vit == theirs["vit_params"]


def test_cost_is_that_of_the_specification():
    model, _ = released("B")
    assert vitdet.forward_macs(model) / 1e9 == pytest.approx(480, rel=0.01)
    assert vitdet.pyramid_macs(model.grid, model.embed_dim) / 1e9 == pytest.approx(72, rel=0.01)


def test_an_encoder_fits_by_name():
    """All but the class token and the final norm, which have no use here; new: relative tables."""
    encoder = VisionTransformer((224, 224), (16, 16), 3, 32, 4, 4, num_classes=0)
    theirs = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 196, 768)))["params"]
    model = ViTDet(**TINY | {"table_grid": (14, 14)})
    ours = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    theirs, ours = ({k: x.shape for k, x in flatten(tree).items()} for tree in (theirs, ours))
    assert theirs.keys() - ours.keys() == {"cls_token", "norm/scale", "norm/bias"}
    new = ours.keys() - theirs.keys()
    assert {name.split("/", 1)[1] for name in new} == {"attn/rel_pos_h", "attn/rel_pos_w"}
    assert all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


def test_dtype_is_that_of_the_arithmetic():
    model, pyramid = ViTDet(**TINY, dtype=jnp.bfloat16), SimpleFeaturePyramid(16, jnp.bfloat16)

    def run():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        x = model.apply(variables, jnp.zeros((1, 80, 48, 3)))
        return variables, x, pyramid.init_with_output(jax.random.key(0), x)

    params, x, (levels, params2) = jax.eval_shape(run)
    assert x.shape == (1, 5, 3, 32) and [y.shape[1:3] for y in levels][-2:] == [(2, 1), (1, 1)]
    assert {y.dtype for y in (x, *levels)} == {jnp.dtype(jnp.bfloat16)}
    assert {y.dtype for y in jax.tree.leaves((params, params2))} == {jnp.dtype(jnp.float32)}


def test_image_size_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="width 40 is not divisible by patch size 16"):
        jax.eval_shape(ViTDet(**TINY).init, jax.random.key(0), jnp.zeros((1, 32, 40, 3)))


def test_initial_values_are_detectron2s():
    model = ViTDet(**TINY | {"depth": 1, "global_blocks": ()})

    @jax.jit
    def init():
        x = jnp.zeros((1, 2, 2, 32))
        backbone = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        return backbone["params"], PYRAMID.init(jax.random.key(1), x)["params"]

    backbone, pyramid = init()
    block = backbone["blocks_0"]
    for x in (block["attn"]["qkv"]["kernel"], block["mlp"]["fc1"]["kernel"]):
        assert x.std() == pytest.approx(0.02, rel=0.05)
    assert not block["attn"]["rel_pos_h"].any() and not block["attn"]["qkv"]["bias"].any()
    for name, fan_in in (
        ("p2/deconv0", 4 * 16),
        ("p4/lateral/conv", 32),
        ("p4/output/conv", 9 * 16),
    ):
        bound = fan_in**-0.5
        assert 0.9 * bound < np.abs(flatten(pyramid)[f"{name}/kernel"]).max() <= bound
