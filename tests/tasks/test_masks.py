"""Masks of every kind in the train step, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.distributed import sharding
from mae_jax.ops import masking, rng
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs


def small(**changes):
    return tiny_configs.config(model__image_size=(32, 32), batch_size=8, **changes)  # 8 x 8 patches


@pytest.mark.parametrize("kind", masking.MASKS)
def test_a_step_with_the_same_masks_on_one_device_and_on_four(kind):
    ratio = 0.5 if kind == "checkerboard" else 0.75
    config = small(mask__kind=kind, mask__ratio=ratio, grad_accum=2)
    task = Pretrain(config, "")
    batches = task.train_batches(0)
    batch = next(batches)
    batches.close()
    found, of_step = [], rng.stream_key(config.seed, "train", 0)
    for number in (1, 4):
        mesh = sharding.make_mesh(devices=jax.devices()[:number])
        here = sharding.to_device(mesh, batch)
        # Drawn inside the step, from its key, so the noise is sharded over the devices.
        prepare = jax.jit(
            lambda batch: task.prepare(batch, of_step, jnp.int32(0))["noise"],
            out_shardings=sharding.batch_sharding(mesh),
        )
        noise = prepare(here)
        assert len(noise.sharding.device_set) == number
        abstract = abstract_state(task, mesh)
        step = make_train_step(task, abstract, mesh, seed=config.seed, grad_accum=2)
        _, values = step(create_state(task, abstract), here)
        found.append((np.asarray(noise), jax.device_get(values)))
    (noise, one), (noise_of_four, four) = found
    np.testing.assert_array_equal(noise, noise_of_four)
    mask = np.asarray(masking.from_noise(noise, ratio).mask)
    assert (mask.sum(axis=1) == 64 * ratio).all()
    assert len(np.unique(mask, axis=0)) == (1 if kind in ("grid", "checkerboard") else 8)
    for key in ("loss", "baseline_loss", "grad_norm"):
        assert np.isfinite(one[key])
        np.testing.assert_allclose(four[key], one[key], rtol=2e-6, err_msg=key)


@pytest.mark.parametrize("kind", masking.MASKS)
def test_masks_of_held_out_images_depend_only_on_the_example(kind):
    ratio = 0.5 if kind == "checkerboard" else 0.75
    task = Pretrain(small(mask__kind=kind, mask__ratio=ratio), "")
    together = task._fixed_noise(np.array([3, 5, 8]))
    np.testing.assert_array_equal(task._fixed_noise(np.array([8, 3])), together[np.array([2, 0])])


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"mask__kind": "grid", "mask__ratio": 0.5},
            "16 of 64, not 32: its mask ratio is 0.75 (--config.mask.kind=grid, "
            "--config.mask.ratio=0.5, --config.model.image_size=(32, 32), "
            "--config.model.patch_size=(4, 4))",
        ),
        (
            {"mask__kind": "grid", "model__image_size": (32, 36)},
            "one patch of every 2 x 2 cell: 8 x 9 patches are not even numbers (--config.mask.kind",
        ),
        (
            {"mask__kind": "block", "model__image_size": (32, 8), "model__patch_size": (4, 8)},
            "mask kind block: there is no room for boxes in 8 x 1 patches (--config.mask.kind",
        ),
    ],
)
def test_a_kind_that_does_not_fit_is_refused_at_the_start(changes, message):
    with pytest.raises(UsageError) as caught:
        Pretrain(tiny_configs.config(**{"model__image_size": (32, 32)} | changes), "")
    assert message in str(caught.value) and "\n" not in str(caught.value)
