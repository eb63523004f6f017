"""detectron2's names and layouts in both directions."""

import json

import numpy as np
import pytest

from mae_jax.convert import detectron2
from tests.parity import official

BOTH = ("kernel", "bias")
CONVS = {f"conv{i}/kernel" for i in range(4)} | {
    f"norm{i}/{leaf}" for i in range(4) for leaf in ("scale", "bias")
}
RPN = {f"{m}/{leaf}" for m in ("conv0", "conv1", "objectness", "deltas") for leaf in BOTH}
BOX = CONVS | {f"{m}/{leaf}" for m in ("fc1", "scores", "deltas") for leaf in BOTH}
MASK = CONVS | {f"{m}/{leaf}" for m in ("deconv", "predictor") for leaf in BOTH}


def released_names():
    """All names of the released ViTDet-B with arrays of small sizes, all different."""
    with open(official.path("detection/n_parameters_optimizer.json"), encoding="utf-8") as file:
        table = json.load(file)["b"]["table"]
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape, *_ in table:
        shape = [d % 5 + 1 if d > 49 else d for d in shape]
        if name.endswith("fc1.weight") and "box_head" in name:
            shape[1] = 3 * 49
        arrays[name] = rng.normal(size=shape).astype(np.float32)
    return arrays


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name, strict=True)


def test_round_trip_of_every_released_name_is_exact():
    file = released_names()
    read = detectron2.to_ours(file | {"pixel_mean": np.zeros((3, 1, 1))})
    assert not read.unused and len(read.arrays) == len(file)
    equal(detectron2.to_detectron2(read.arrays), file)
    heads = {n for n in read.arrays if not n.startswith(("backbone/", "pyramid/"))}
    parts = {"rpn": RPN, "box_head": BOX, "mask_head": MASK}
    assert heads == {f"{part}/{name}" for part, names in parts.items() for name in names}
    kernel = file["roi_heads.mask_head.deconv.weight"]
    np.testing.assert_array_equal(read.arrays["mask_head/deconv/kernel"][0, 1], kernel[:, :, 0, 1])
    kernel = file["roi_heads.box_head.conv2.weight"]
    np.testing.assert_array_equal(read.arrays["box_head/conv1/kernel"][0, 1], kernel[:, :, 0, 1].T)


def test_round_trip_of_the_papers_protocol_is_exact():
    ref = official.arrays("detection/p_fpn_protocol.npz")
    file = {
        f"backbone.{name}": x
        for prefix in ("param/", "buffer/")
        for name, x in official.subset(ref, prefix).items()
    }
    steps = {"backbone.fpn_lateral2.norm.num_batches_tracked": np.array(7)}
    read = detectron2.to_ours(file | steps)
    assert not read.unused
    assert "pyramid/lateral2/norm/mean" in read.arrays
    equal(detectron2.to_detectron2(read.arrays), file)


def test_the_box_head_reads_its_map_in_our_order():
    """P22: (C, 7, 7) there, (7, 7, C) here."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(5, 3 * 49)), rng.normal(size=(3, 7, 7))
    name = "roi_heads.box_head.fc1.weight"
    read = detectron2.to_ours({name: weight})
    ours = x.transpose(1, 2, 0).reshape(-1) @ read.arrays["box_head/fc1/kernel"]
    np.testing.assert_allclose(ours, weight @ x.reshape(-1), rtol=1e-4, atol=1e-5)


def test_final_norm_of_an_encoder_stays_out_of_the_heads():
    """P25: nothing is matched by suffix and shape."""
    names = ["norm.weight", "norm.bias", "cls_token", "backbone.net.norm.weight"]
    read = detectron2.to_ours({name: np.zeros(256, np.float32) for name in names})
    assert read.unused == names and not read.arrays


def test_a_single_rpn_convolution_has_no_number_there():
    name = "proposal_generator.rpn_head.conv.weight"
    read = detectron2.to_ours({name: np.zeros((2, 3, 1, 1), np.float32)})
    assert read.arrays["rpn/conv0/kernel"].shape == (1, 1, 3, 2)
    assert list(detectron2.to_detectron2(read.arrays)) == [name]


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="4 axes are expected"):
        detectron2.to_ours({"backbone.simfp_4.0.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="have no head/kernel"):
        detectron2.to_detectron2({"head/kernel": np.zeros((2, 2))})
