"""Random masking: counts, uniformity, and a mask of its own for every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mae_jax import sharding
from mae_jax.ops import masking

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
KEPT_196 = (176, 156, 137, 117, 98, 78, 58, 49, 39, 29, 19, 9)
KEPT_256 = (230, 204, 179, 153, 128, 102, 76, 64, 51, 38, 25, 12)


@pytest.mark.parametrize("length, kept", [(196, KEPT_196), (256, KEPT_256)])
def test_number_kept_is_the_official_rounding(length, kept):
    assert tuple(masking.num_keep(length, ratio) for ratio in RATIOS) == kept


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, 0.999])
def test_impossible_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        masking.num_keep(196, ratio)


def test_parts_of_a_masking_fit_together():
    masked = masking.from_noise(jax.random.uniform(jax.random.key(0), (5, 20)), 0.6)
    assert masked.ids_keep.shape == (5, 8) and masked.ids_masked.shape == (5, 12)
    for row in range(5):
        both = np.concatenate([masked.ids_keep[row], masked.ids_masked[row]])
        assert sorted(both) == list(range(20))
        restored = np.asarray(masked.ids_shuffle)[row][masked.ids_restore[row]]
        np.testing.assert_array_equal(restored, np.arange(20))
        assert set(np.flatnonzero(masked.mask[row] == 0)) == set(np.asarray(masked.ids_keep[row]))


def test_a_given_mask_is_obeyed():
    mask = jnp.array([[1, 0, 1, 0], [0, 0, 1, 1]])
    masked = masking.from_mask(mask, 2)
    np.testing.assert_array_equal(masked.mask, mask)


def test_every_image_has_its_own_mask_and_every_patch_the_same_chance():
    noise = masking.random_noise(jax.random.key(1), 4096, (4, 5))
    mask = np.asarray(masking.from_noise(noise, 0.75).mask)
    assert (mask.sum(axis=1) == 15).all()
    assert len(np.unique(mask, axis=0)) > 3000
    # Standard deviation of a share of 4096 draws is 0.0068.
    np.testing.assert_allclose(mask.mean(axis=0), 0.75, atol=5 * 0.0068)


def test_masks_differ_between_devices_and_not_with_their_number():
    mesh = sharding.make_mesh()

    def draw(key):
        noise = masking.random_noise(key, 16, (4, 4))
        return jax.lax.with_sharding_constraint(
            noise, jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        )

    spread = jax.jit(draw)(jax.random.key(3))
    assert len(spread.sharding.device_set) == 4
    np.testing.assert_array_equal(spread, masking.random_noise(jax.random.key(3), 16, (4, 4)))
    assert len(np.unique(np.asarray(spread), axis=0)) == 16
