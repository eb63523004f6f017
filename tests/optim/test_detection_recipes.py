"""Parameter groups and schedules of the detection recipes equal detectron2's released ones."""

import importlib
import json

import numpy as np
import pytest

from mae_jax.convert.detectron2 import to_ours
from mae_jax.models.vit import SIZES
from mae_jax.optim import param_groups
from mae_jax.optim.build import make_optimizer
from tests.parity import official

with open(official.path("detection/n_parameters_optimizer.json")) as file:
    RELEASED = json.load(file)


@pytest.fixture(params=sorted(RELEASED))
def released(request):
    """A released configuration and our recipe for it."""
    recipe = importlib.import_module(f"configs.detection.vitdet_{request.param}").get_config()
    return RELEASED[request.param], recipe


def test_rates_and_weight_decay_by_parameter(released):
    theirs, config = released
    depth = SIZES[config.model.size].depth
    decays = param_groups.DECAYS[config.optim.decays]
    assert config.optim.weight_decay == theirs["weight_decay"]
    for name, shape, factor, weight_decay in theirs["table"]:
        ((ours, array),) = to_ours({name: np.broadcast_to(np.float32(0), shape)}).arrays.items()
        scale = param_groups.backbone_scale(ours, depth, config.optim.layer_decay)
        assert scale == pytest.approx(factor, abs=1e-12), name
        assert decays(ours, array.ndim) == (weight_decay > 0), name


def test_schedule(released):
    theirs, config = released
    steps_per_epoch = 117_266 / config.batch_size
    optimizer = make_optimizer(
        config.optim,
        batch_size=config.batch_size,
        epochs=config.steps / steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
    )
    assert config.steps == theirs["max_iter"]
    assert optimizer.lr == pytest.approx(theirs["lr"], rel=1e-12)
    for step, factor in theirs["lr_multiplier_at_iteration"]:
        assert float(optimizer.schedule(step)) == pytest.approx(factor * theirs["lr"], rel=1e-5)


def test_shared_positions_belong_to_no_block_and_are_not_decayed():
    """As in hustvl/MIMDet, whose `relative_position_bias_table` has no weight decay."""
    decays = param_groups.DECAYS["weights"]
    for name in ("window_positions/table", "global_positions/table"):
        assert param_groups.backbone_scale(f"backbone/{name}", 12, 0.7) == 1
        assert not decays(f"backbone/{name}", 2)
    assert not decays("backbone/pos_embed", 3) and not decays("backbone/blocks_0/attn/rel_pos_h", 2)
    assert decays("backbone/blocks_0/attn/qkv/kernel", 2) and decays("rpn/conv0/kernel", 4)
