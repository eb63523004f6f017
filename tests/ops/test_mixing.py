"""Mixup and CutMix: correct weights and partners, independent draws at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import mixing
from mae_jax.ops.mixing import MixConfig

CLASSES = 64


def run(key, how, batch=64, side=16):
    """Images filled with their row number, and one-hot targets of the row number."""
    rows = jnp.arange(batch, dtype=jnp.float32)
    images = jnp.broadcast_to(rows[:, None, None, None], (batch, side, side, 3))
    targets = mixing.smooth_one_hot(jnp.arange(batch), CLASSES, 0.0)
    mixed = jax.jit(lambda k: mixing.mix(k, images, targets, how))(jax.random.key(key))
    return np.asarray(images), *map(np.asarray, mixed)


def partner(batch, group):
    rows = np.arange(batch).reshape(-1, group)
    return rows[:, ::-1].reshape(-1)


@pytest.mark.parametrize("group", [8, 32])
def test_mixup_blends_image_and_target_alike_within_its_group(group):
    images, mixed, targets = run(0, MixConfig(mixup=0.8, cutmix=0.0, group=group))
    other = partner(64, group)
    lam = np.array([targets[i, i] for i in range(64)])
    np.testing.assert_allclose(lam + [targets[i, other[i]] for i in range(64)], 1, atol=1e-6)
    expected = lam * np.arange(64) + (1 - lam) * other
    np.testing.assert_allclose(mixed[:, 0, 0, 0], expected, atol=1e-4)
    assert np.ptp(mixed, axis=(1, 2, 3)).max() < 1e-4
    by_group = lam.reshape(-1, group)
    np.testing.assert_allclose(by_group, by_group[:, :1].repeat(group, 1), atol=1e-6)
    assert len(np.unique(by_group[:, 0].round(5))) == 64 // group


def test_cutmix_pastes_one_box_and_counts_what_it_covers():
    images, mixed, targets = run(1, MixConfig(mixup=0.0, cutmix=1.0, group=8))
    other = partner(64, 8)
    for i in range(64):
        pasted = mixed[i, :, :, 0] == other[i]
        assert np.all(pasted | (mixed[i, :, :, 0] == i))
        assert np.array_equal(pasted, np.outer(pasted.any(1), pasted.any(0)))  # a box
        assert targets[i, i] == pytest.approx(1 - pasted.mean(), abs=1e-6)


def test_draws_differ_between_steps_and_groups_and_both_kinds_occur():
    lams, cut = [], []
    for key in range(20):
        _, mixed, targets = run(key, MixConfig(group=16))
        lams += [round(float(targets[i, i]), 6) for i in range(0, 64, 16)]
        cut += [mixed[i].std() > 1e-3 for i in range(0, 64, 16)]
    assert len(set(lams)) > 60  # of 80; CutMix boxes of nothing repeat 1
    assert 20 < sum(cut) < 60


def test_areas_of_boxes_follow_the_beta_distribution():
    lam = jax.random.beta(jax.random.key(0), 1.0, 1.0, (20_000,))
    boxes = jax.jit(lambda key: mixing.cutmix_box(key, lam, 64, 48))(jax.random.key(1))
    inside = np.asarray(boxes.mean((1, 2)))
    # A plain NumPy version of timm's `rand_bbox`, with its own draws.
    rng = np.random.default_rng(0)
    areas = []
    for value in rng.uniform(size=20_000):
        cut_h, cut_w = int(64 * np.sqrt(1 - value)), int(48 * np.sqrt(1 - value))
        y, x = rng.integers(64), rng.integers(48)
        low_y, high_y = np.clip([y - cut_h // 2, y + cut_h // 2], 0, 64)
        low_x, high_x = np.clip([x - cut_w // 2, x + cut_w // 2], 0, 48)
        areas.append((high_y - low_y) * (high_x - low_x) / (64 * 48))
    np.testing.assert_allclose(inside.mean(), np.mean(areas), atol=0.01)
    quantiles = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(
        np.quantile(inside, quantiles), np.quantile(areas, quantiles), atol=0.02
    )


def test_prob_leaves_groups_alone():
    images, mixed, targets = run(3, MixConfig(prob=0.0, group=8))
    np.testing.assert_array_equal(images, mixed)
    np.testing.assert_array_equal(targets, np.eye(64, CLASSES))


def test_smoothed_targets_sum_to_one():
    targets = np.asarray(mixing.smooth_one_hot(jnp.array([2, 0]), 10, 0.1))
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0, [1, 2]], [0.01, 0.91], rtol=1e-6)
