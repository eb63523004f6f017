"""Schedules, weight-decay groups and AdamW."""

import decimal
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.optim import build, optimizers, schedules
from mae_jax.runtime.errors import UsageError
from tests.parity import official


def test_schedule_matches_the_official_one_at_every_listed_epoch():
    ref = official.arrays("lr_sched.npz")
    lr, min_lr, warmup, epochs, _ = ref["pretrain800/args"]
    schedule = schedules.warmup_cosine(
        lr, warmup_epochs=warmup, epochs=epochs, steps_per_epoch=20, min_lr=min_lr
    )
    steps = np.arange(len(ref["pretrain800/lr"]))
    np.testing.assert_allclose(steps / 20, ref["pretrain800/epoch"], atol=1e-9)
    np.testing.assert_allclose(jax.vmap(schedule)(steps), ref["pretrain800/lr"], rtol=0, atol=1e-8)


def test_schedule_of_fine_tuning_has_a_floor():
    ref = official.arrays("lr_sched.npz")
    lr, min_lr, warmup, epochs, _ = ref["finetune100/args"]
    schedule = schedules.warmup_cosine(
        lr, warmup_epochs=warmup, epochs=epochs, steps_per_epoch=20, min_lr=min_lr
    )
    out = jax.vmap(schedule)(np.arange(len(ref["finetune100/lr"])))
    np.testing.assert_allclose(out, ref["finetune100/lr"], rtol=0, atol=1e-8)


def test_learning_rate_of_the_recipe():
    assert schedules.absolute_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_decayed_parameters_are_the_official_ones():
    with open(official.path("pretrain_weight_decay.json"), encoding="utf-8") as file:
        reference = json.load(file)["tiny"]
    mask = optimizers.decay_mask(official.tiny_params())
    checked = 0
    for name, decay in reference.items():
        if name in official.SKIPPED:
            continue
        leaf = mask
        for key in official.convert(name, np.zeros((1, 1, 1)))[0]:
            leaf = leaf[key] if key in leaf else leaf["scale"]
        assert leaf == (decay > 0), name
        checked += 1
    assert checked == len(jax.tree.leaves(mask))


def test_gradient_clipping_bounds_the_global_norm():
    def first_moment(clip):
        tx = optimizers.adamw(lambda _: 1.0, b1=0.9, b2=0.95, weight_decay=0.0, grad_clip=clip)
        params = {"a": {"kernel": jnp.zeros((2, 2))}}
        grads = {"a": {"kernel": jnp.full((2, 2), 3.0)}}
        _, state = tx.update(grads, tx.init(params), params)
        return np.asarray(state[1].mu["a"]["kernel"])

    np.testing.assert_allclose(first_moment(0.0), 0.3, rtol=1e-6)
    np.testing.assert_allclose(first_moment(1.5), 0.1 * 3.0 * 1.5 / 6.0, rtol=1e-6)


def test_the_first_moment_can_be_kept_in_half_the_memory():
    from configs import vit_l

    optim = vit_l.get_config().optim
    params = {"a": {"kernel": jnp.zeros((2, 2))}}
    for dtype in ("float32", "bfloat16"):
        optim.mu_dtype = dtype
        made = build.make_optimizer(optim, batch_size=64, epochs=100.0, steps_per_epoch=10.0)
        adam = made.tx.init(params)[1]
        assert adam.mu["a"]["kernel"].dtype == dtype and adam.nu["a"]["kernel"].dtype == "float32"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"warmup_epochs": 5.0}, "warmup_epochs=5 is not shorter than .* 5 epochs: .*epochs=0.5,"),
        ({"warmup_epochs": 40.0}, "warmup_epochs=40 is not shorter than the run"),
        ({"min_lr": 1e-3}, r"min_lr=0.001 is above the learning rate 3.75e-05 .*base_lr=0.00015 x"),
    ],
)
def test_rates_that_make_no_schedule_are_refused_with_the_numbers(changes, message):
    from configs import vit_l

    optim = vit_l.get_config().optim
    optim.warmup_epochs = 4.9
    build.make_optimizer(optim, batch_size=64, epochs=5.0, steps_per_epoch=100.0)
    optim.update(changes)
    with pytest.raises(UsageError, match=message):
        build.make_optimizer(optim, batch_size=64, epochs=5.0, steps_per_epoch=100.0)


@pytest.mark.parametrize("epochs", [0.1, 0.3, 0.7, 1.1, 2.3, 33.3, 50.0, 1600, 1e-3, 1e9])
@pytest.mark.parametrize("images, batch", [(57, 25), (96, 16), (1_281_167, 4096), (10, 3), (7, 7)])
def test_the_length_of_a_run_is_exact(epochs, images, batch):
    steps = schedules.num_steps(epochs, images, batch)
    whole = decimal.Decimal(str(epochs)) * images
    assert steps * batch <= whole < (steps + 1) * batch


def test_no_last_step_is_lost_to_rounding():
    assert int(50.0 * (57 / 25)) == 113  # the error that this avoids
    assert schedules.num_steps(50.0, 57, 25) == 114
    assert schedules.num_steps(0.3, 100, 10) == 3
