"""The paper's own detection protocol against MIMDet and detectron2, from recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.convert import detectron2
from mae_jax.models.fpn import Adaptor, FeaturePyramid, pyramid_macs
from mae_jax.models.vitdet import PositionTable, ViTDet, quarter_ends
from mae_jax.ops.trees import flatten, unflatten
from tests.parity import official

MODEL = ViTDet(
    image_size=(128, 128),
    patch_size=(16, 16),
    channels=3,
    embed_dim=32,
    depth=4,
    num_heads=4,
    window=4,
    table_grid=(8, 8),
    shared_positions=True,
)
PYRAMID = FeaturePyramid(16)


def close(ours, theirs, message=""):
    np.testing.assert_allclose(np.asarray(ours), theirs, 1e-3, 2e-4, err_msg=message)


@pytest.fixture(scope="module")
def ref():
    return official.arrays("detection/p_fpn_protocol.npz")


def read(ref, prefix):
    named = {f"backbone.{name}": x for name, x in official.subset(ref, prefix).items()}
    found = detectron2.to_ours(named)
    assert not found.unused
    return found.arrays


@pytest.fixture(scope="module")
def variables(ref):
    params = read(ref, "param/")
    # Its position table has no row of the class token.
    table = params["backbone/pos_embed"]
    params["backbone/pos_embed"] = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    params, statistics = unflatten(params), unflatten(read(ref, "buffer/"))
    return params["backbone"], {"params": params["pyramid"], "batch_stats": statistics["pyramid"]}


@pytest.fixture(scope="module")
def outputs(ref, variables):
    """The adaptor's maps, and the levels in both modes with the statistics after a step."""
    backbone, pyramid = variables

    def run(images):
        # The reference has four blocks: each is the last of its quarter, so all are global.
        taps = MODEL.apply({"params": backbone}, images, quarter_ends(4), method=MODEL.features)
        levels, captured = PYRAMID.apply(pyramid, taps, capture_intermediates=adaptor)
        trained, state = PYRAMID.apply(pyramid, taps, True, mutable=["batch_stats"])
        maps = captured["intermediates"]["adaptor"]["__call__"][0]
        return maps, levels, trained, state["batch_stats"]

    return jax.jit(run)(jnp.asarray(ref["x"].transpose(0, 2, 3, 1)))


def adaptor(module, method):
    return isinstance(module, Adaptor)


def test_adaptor_matches(ref, outputs):
    for i, x in enumerate(outputs[0]):
        close(x.transpose(0, 3, 1, 2), ref[f"adaptor_s{i}"], f"map {i}")


@pytest.mark.parametrize("mode, index", [("eval", 1), ("train", 2)])
def test_levels_match(ref, outputs, mode, index):
    for i, x in enumerate(outputs[index]):
        close(x.transpose(0, 3, 1, 2), ref[f"{mode}_p{2 + i}"], f"p{2 + i}")


def test_running_statistics_match(ref, variables, outputs):
    before = flatten(variables[1]["batch_stats"])
    after = read(ref, "buffer_after/")
    ours = flatten(outputs[3])
    assert {f"pyramid/{name}" for name in ours} == after.keys()
    for name, x in ours.items():
        close(x, after[f"pyramid/{name}"], name)
        assert np.abs(x - before[name]).max() > 1e-3, name


@pytest.mark.parametrize("kind, side", [("window", 4), ("global", 8)])
def test_shared_tables_match(ref, variables, kind, side):
    params = {"params": variables[0][f"{kind}_positions"]}
    bias, rows = PositionTable((side, side), 4).apply(params, (side, side))
    ours = jnp.concatenate([bias(None, row) for row in rows], axis=1)  # [heads, H * W, H, W]
    ours = ours.reshape(4, side**2, side**2)
    close(ours[:, ::7, ::5] if kind == "global" else ours, ref[f"{kind}_bias"])


def test_windowed_blocks_share_one_table_and_global_blocks_the_other(variables):
    """Through remat too; an image of another size, not a multiple of the window."""
    model = MODEL.clone(depth=2, global_blocks=(1,), remat="blocks")
    images = jax.random.normal(jax.random.key(0), (1, 96, 112, 3))
    grads = jax.jit(jax.grad(lambda params: (model.apply({"params": params}, images) ** 2).sum()))(
        variables[0]
    )
    shapes = {name: x.shape for name, x in flatten(grads).items() if "position" in name}
    assert shapes == {
        "global_positions/table": (15 * 15, 4),
        "window_positions/table": (7 * 7, 4),
    }
    assert all(
        np.abs(grads[f"{kind}_positions"]["table"]).max() > 0 for kind in ("window", "global")
    )


def test_odd_maps(variables):
    maps = [jnp.ones((1, 7, 5, 32))] * 4
    levels = jax.eval_shape(lambda: PYRAMID.apply(variables[1], maps))
    sizes = [x.shape[1:3] for x in levels]
    assert sizes == [(28, 20), (14, 10), (7, 5), (3, 2), (2, 1)]


def test_cost_is_that_of_the_kernels(variables):
    """Multiply-adds of a kernel: its size times the positions it is applied to."""
    scale = {"2": 16, "3": 4, "4": 1, "5": 0.25}  # positions of a level, for each token
    scale |= {"adaptor/p2_deconv0": 1, "adaptor/p2_deconv1": 4, "adaptor/p3_deconv": 1}
    total = 0
    for name, x in flatten(variables[1]["params"]).items():
        if name.endswith("/kernel"):
            place = name.removesuffix("/kernel")
            total += 64 * x.size * scale.get(place, scale.get(place.split("/")[0][-1], 0))
    assert pyramid_macs((8, 8), 32, 16) == total
