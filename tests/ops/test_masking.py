"""Masks of every kind: counts, distributions, and a mask of its own for every image."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mae_jax.distributed import sharding
from mae_jax.ops import masking

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
GRIDS = ((14, 14), (16, 16), (8, 8), (4, 12))
KEPT_196 = (176, 156, 137, 117, 98, 78, 58, 49, 39, 29, 19, 9)
KEPT_256 = (230, 204, 179, 153, 128, 102, 76, 64, 51, 38, 25, 12)
ONLY_RATIO = {"grid": 0.75, "checkerboard": 0.5}  # of grids that whole cells tile


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
    noise = masking.random_noise(jax.random.key(1), 4096, (4, 5), 5)
    mask = np.asarray(masking.from_noise(noise, 0.75).mask)
    assert (mask.sum(axis=1) == 15).all()
    assert len(np.unique(mask, axis=0)) > 3000
    # Standard deviation of a share of 4096 draws is 0.0068.
    np.testing.assert_allclose(mask.mean(axis=0), 0.75, atol=5 * 0.0068)


def test_masks_differ_between_devices_and_not_with_their_number():
    mesh = sharding.make_mesh()

    def draw(key):
        noise = masking.random_noise(key, 16, (4, 4), 4)
        return jax.lax.with_sharding_constraint(
            noise, jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        )

    spread = jax.jit(draw)(jax.random.key(3))
    assert len(spread.sharding.device_set) == 4
    expected = masking.random_noise(jax.random.key(3), 16, (4, 4), 4)
    np.testing.assert_array_equal(spread, expected)
    assert len(np.unique(np.asarray(spread), axis=0)) == 16


def draw(kind, batch, grid, ratio, seed=0):
    """Masks [batch, rows, columns] of a compiled sampler, 1 is hidden."""
    function = jax.jit(lambda key: masking.masks(key, batch, grid, ratio, masking.MASKS[kind]).mask)
    return np.asarray(function(jax.random.key(seed))).reshape(batch, *grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", masking.MASKS)
def test_all_images_keep_exactly_as_many(kind, grid):
    # One program for all ratios, where a kind has more than one.
    static = (1, 2, 3) if kind in ONLY_RATIO else (1, 2)
    sample = jax.jit(masking.MASKS[kind], static_argnums=static)
    length = grid[0] * grid[1]
    ratios = (ONLY_RATIO[kind],) if kind in ONLY_RATIO else RATIOS
    if (kind, grid) == ("checkerboard", (14, 14)):
        ratios = (0.489,)
    for ratio in ratios:
        keep = masking.num_keep(length, ratio)
        noise = sample(jax.random.key(2), 8, grid, keep)
        assert noise.shape == (8, length) and noise.dtype == jnp.float32
        mask = np.asarray(masking.from_noise(noise, ratio).mask)
        assert (mask.sum(axis=1) == length - keep).all()
        if kind == "block":  # nothing in a box is visible
            assert (mask[np.asarray(noise) >= 1] == 1).all()


def test_random_masks_are_samples_without_replacement():
    number, grid, length, keep = 8192, (6, 6), 36, 9
    mask = draw("random", number, grid, 0.75).reshape(number, length)
    # The chance of a patch, and of a pair, as squares of deviations in units of their variance.
    single = keep / length
    spread = (mask.sum(axis=0) - number * (1 - single)) ** 2 / (number * single * (1 - single))
    chi2 = spread.sum() * (length - 1) / length
    assert abs(chi2 - (length - 1)) < 4 * math.sqrt(2 * (length - 1))
    pair = keep * (keep - 1) / (length * (length - 1))
    shown = 1 - mask
    together = (shown.T @ shown)[np.triu_indices(length, 1)]
    deviations = (together - number * pair) / math.sqrt(number * pair * (1 - pair))
    assert abs((deviations**2).mean() - 1) < 0.2 and np.abs(deviations).max() < 4.5


def test_grid_keeps_the_top_left_patch_of_every_cell():
    mask = draw("grid", 3, (4, 6), 0.75)
    expected = np.tile([[0, 1], [1, 1]], (2, 3))
    np.testing.assert_array_equal(mask, np.tile(expected, (3, 1, 1)))


def test_checkerboard_keeps_every_other_cell():
    mask = draw("checkerboard", 2, (4, 6), 0.5)
    expected = [[0, 0, 1, 1, 0, 0]] * 2 + [[1, 1, 0, 0, 1, 1]] * 2
    np.testing.assert_array_equal(mask, [expected, expected])


@pytest.mark.parametrize(
    "kind, grid, ratio, message",
    [
        ("grid", (14, 14), 0.6, "49 of 196, not 78: its mask ratio is 0.75"),
        ("grid", (8, 7), 0.75, "8 x 7 patches are not even"),
        ("grid", (7, 8), 0.75, "7 x 8 patches are not even"),
        ("checkerboard", (14, 14), 0.5, "100 of 196, not 98: its mask ratio is 0.48"),
        ("checkerboard", (7, 10), 0.75, "36 of 70, not 17: its mask ratio is 0.48"),
        ("block", (1, 16), 0.75, "no room for boxes in 1 x 16 patches"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(kind, grid, ratio, message):
    with pytest.raises(ValueError, match=f"mask kind {kind}.*{message}"):
        masking.masks(jax.random.key(0), 1, grid, ratio, masking.MASKS[kind])


def boxes_of_the_paper(rng, rows, columns, number):
    """The patches hidden by boxes and, with those added at random, all: bool arrays, in loops."""
    hidden = np.zeros((rows, columns), bool)
    placed = True
    while placed and hidden.sum() < number:
        placed = False
        for _ in range(10):
            left = number - hidden.sum()
            area = rng.uniform(16 * rows * columns / 196, left)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, start = rng.randint(0, rows - height), rng.randint(0, columns - width)
            with_box = hidden.copy()
            with_box[top : top + height, start : start + width] = True
            if 0 < with_box.sum() - hidden.sum() <= left:
                hidden, placed = with_box, True
                break
    every = hidden.copy()
    rest = np.flatnonzero(~every)
    every.reshape(-1)[rng.sample(list(rest), number - int(hidden.sum()))] = True
    return hidden, every


def inner(masks):
    """Share of the hidden patches of each mask whose four neighbors are hidden, too."""
    m = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    around = m[:, :-2, 1:-1] * m[:, 2:, 1:-1] * m[:, 1:-1, :-2] * m[:, 1:-1, 2:]
    return (masks * around).sum(axis=(1, 2)) / masks.sum(axis=(1, 2))


def border(masks):
    """Number of neighbors of each mask of which one is hidden."""
    return sum(np.abs(np.diff(masks, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))


@pytest.mark.parametrize(
    "grid, ratio", [((14, 14), 0.5), ((14, 14), 0.75), ((4, 12), 0.4), ((16, 16), 0.95)]
)
def test_blocks_are_distributed_as_in_plain_loops(grid, ratio):
    number, rng = 800, random.Random(0)
    keep = masking.num_keep(grid[0] * grid[1], ratio)
    hidden = grid[0] * grid[1] - keep
    pairs = [boxes_of_the_paper(rng, *grid, hidden) for _ in range(number)]
    boxes_ref, every_ref = (np.array(masks, float) for masks in zip(*pairs, strict=True))
    noise = masking.block_noise(jax.random.key(5), 4 * number, grid, keep)
    boxes = (np.asarray(noise) >= 1).astype(float).reshape(-1, *grid)
    every = np.asarray(masking.from_noise(noise, ratio).mask, float).reshape(-1, *grid)
    np.testing.assert_array_equal(every * boxes, boxes)  # what boxes hide is hidden
    for measure, ours, theirs in (
        ("hidden by boxes", boxes.sum(axis=(1, 2)), boxes_ref.sum(axis=(1, 2))),
        ("inner", inner(every), inner(every_ref)),
        ("border", border(every), border(every_ref)),
        ("border of boxes", border(boxes), border(boxes_ref)),
    ):
        deviation = math.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        assert abs(ours.mean() - theirs.mean()) < 4 * deviation, measure
        # Kolmogorov and Smirnov: the largest difference of the cumulative distributions.
        at = np.unique(np.concatenate([ours, theirs]))
        below = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (ours, theirs)]
        bound = 2.2 * math.sqrt(1 / len(ours) + 1 / len(theirs))  # one in 10,000 exceeds it
        assert np.abs(below[0] - below[1]).max() < bound, measure
    # A patch and its mirror images have the same chance.
    chance, chance_ref = (
        (x + x[:, ::-1] + x[:, :, ::-1] + x[:, ::-1, ::-1]).mean(axis=0) / 4
        for x in (every, every_ref)
    )
    np.testing.assert_allclose(chance, chance_ref, atol=4.5 * 0.5 / math.sqrt(number))


def test_block_masks_are_made_of_rectangles():
    def in_a_square(masks):
        """Share of the hidden patches that lie in a hidden square of 2 x 2 patches."""
        square = masks[:, :-1, :-1] * masks[:, 1:, :-1] * masks[:, :-1, 1:] * masks[:, 1:, 1:]
        covered = np.zeros_like(masks)
        for y, x in ((0, 0), (1, 0), (0, 1), (1, 1)):
            covered[:, y : y + square.shape[1], x : x + square.shape[2]] += square
        return (covered > 0).sum() / masks.sum()

    block, scattered = (draw(kind, 256, (14, 14), 0.5) for kind in ("block", "random"))
    assert in_a_square(block) > 0.97 and in_a_square(scattered) < 0.5
    assert inner(block).mean() > 5 * inner(scattered).mean()


@pytest.mark.parametrize("kind", ["random", "block"])
def test_masks_are_functions_of_the_key_and_differ_between_images(kind):
    number = 2048
    masks = draw(kind, number, (8, 8), 0.5)
    np.testing.assert_array_equal(masks, draw(kind, number, (8, 8), 0.5))
    other = draw(kind, number, (8, 8), 0.5, seed=1)
    assert (masks != other).any(axis=(1, 2)).mean() > 0.99
    assert len(np.unique(masks, axis=0)) > 0.99 * number
    # Neighbors in a batch are as independent as images of different batches.
    agree = [(masks[1:] == x[:-1]).mean(axis=(1, 2)) for x in (masks, other)]
    assert abs(agree[0].mean() - agree[1].mean()) < 5 * agree[1].std() * math.sqrt(2 / number)


def test_highest_priority_is_hidden_first_and_ties_at_random():
    priority = jnp.array([[3.0, 1, 2, 0], [0, -1, 5, 4]])
    masked = masking.from_priority(priority, 0.5, jax.random.key(0))
    np.testing.assert_array_equal(masked.mask, [[1, 0, 1, 0], [0, 0, 1, 1]])
    alone = masking.from_priority(priority[1], 0.75, jax.random.key(0))
    np.testing.assert_array_equal(alone.mask, [[1, 0, 1, 1]])
    # Of three equal ones, one is hidden, all equally often; the highest always, the lowest never.
    ties = jnp.tile(jnp.array([2, 1, 1, 1, 0, 0, 0, 0]), (4096, 1))
    found = np.asarray(masking.from_priority(ties, 0.25, jax.random.key(1)).mask)
    assert (found.sum(axis=1) == 2).all()
    np.testing.assert_array_equal(found.mean(axis=0)[[0, 4, 5, 6, 7]], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(found.mean(axis=0)[1:4], 1 / 3, atol=5 * 0.0074)
