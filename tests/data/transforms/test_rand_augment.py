"""RandAugment and color jitter: what is drawn, and every operation against plain NumPy."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import TrainSampler
from mae_jax.data.transforms import rand_augment
from mae_jax.data.transforms.rand_augment import Strength
from tests.data.helpers import picture

IMAGE = picture(5, 48, 64)
LEVELS = (0.0, 0.33, 0.9, 1.0)


def apply(name, level, sign=1, image=IMAGE):
    return np.asarray(rand_augment.OPERATIONS[name](Image.fromarray(image), Strength(level, sign)))


def gray(image):
    """Luma as Pillow's conversion to L rounds it."""
    r, g, b = (image[..., i].astype(np.int64) for i in range(3))
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def blend(a, b, factor):
    """Pillow's blend from a (factor 0) to b (factor 1), truncated and clipped."""
    out = a.astype(np.float32) + np.float32(factor) * (b.astype(np.float32) - a.astype(np.float32))
    return np.clip(out, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("level", LEVELS)
def test_bits_and_thresholds(level):
    bits = 4 - int(level / 1.0 * 4)
    mask = 0 if bits == 0 else 255 & ~(2 ** (8 - bits) - 1)
    np.testing.assert_array_equal(apply("PosterizeIncreasing", level), IMAGE & mask)
    threshold = 256 - int(level * 256)
    solarized = np.where(threshold > IMAGE, IMAGE, 255 - IMAGE)
    np.testing.assert_array_equal(apply("SolarizeIncreasing", level), solarized)
    added = np.minimum(IMAGE.astype(int) + int(level * 110), 255)
    np.testing.assert_array_equal(apply("SolarizeAdd", level), np.where(IMAGE < 128, added, IMAGE))
    np.testing.assert_array_equal(apply("Invert", level), 255 - IMAGE)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", LEVELS)
def test_enhancements_blend_with_the_right_factor(level, sign):
    factor = 1 + sign * 0.9 * level
    luma = gray(IMAGE)[..., None].repeat(3, 2)
    mean = np.full_like(IMAGE, int(gray(IMAGE).mean() + 0.5))
    for name, plain in (
        ("ColorIncreasing", luma),
        ("ContrastIncreasing", mean),
        ("BrightnessIncreasing", np.zeros_like(IMAGE)),
    ):
        np.testing.assert_array_equal(apply(name, level, sign), blend(plain, IMAGE, factor), name)
    sharp = apply("SharpnessIncreasing", level, sign)
    change = np.abs(sharp.astype(int) - IMAGE).mean()
    assert (change == 0) == (level == 0)
    rough = np.abs(np.diff(sharp.astype(int), axis=1)).mean()
    before = np.abs(np.diff(IMAGE.astype(int), axis=1)).mean()
    assert level == 0 or (rough > before) == (sign > 0)


def test_autocontrast_and_equalize_stretch_each_channel():
    dull = (IMAGE // 3 + 60).astype(np.uint8)
    out = apply("AutoContrast", 0, image=dull)
    low, high = (f(dull.astype(float), axis=(0, 1)) for f in (np.min, np.max))
    np.testing.assert_allclose(out, (dull - low) * 255 / (high - low), atol=1)
    out = apply("Equalize", 0, image=dull)
    for channel in range(3):
        histogram = np.bincount(dull[..., channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        table = (step // 2 + np.cumsum(histogram) - histogram) // step
        expected = np.clip(table, 0, 255)[dull[..., channel]]
        np.testing.assert_array_equal(out[..., channel], expected)


def shift(image, rows, columns):
    """The image moved by whole pixels, filled with the fill color."""
    out = np.empty_like(image)
    out[:] = Strength(0).fill
    h, w = image.shape[:2]
    source = image[max(rows, 0) : h + min(rows, 0), max(columns, 0) : w + min(columns, 0)]
    top, left = max(-rows, 0), max(-columns, 0)
    out[top : top + source.shape[0], left : left + source.shape[1]] = source
    return out


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_moves_the_right_way_by_the_right_amount(sign):
    level = 10 / 0.45 / 64  # ten pixels of the width
    moved = apply("TranslateXRel", level, sign)
    inside = np.s_[:, 12:-12]
    np.testing.assert_allclose(moved[inside], shift(IMAGE, 0, 10 * sign)[inside], atol=1)
    level = 9 / 0.45 / 48
    moved = apply("TranslateYRel", level, sign)
    np.testing.assert_allclose(moved[11:-11], shift(IMAGE, 9 * sign, 0)[11:-11], atol=1)
    # Sheared by 0.25, row y (its center) moves by 0.25 * (y + 0.5): whole pixels at y + 0.5 = 4 n.
    smooth = np.linspace(0, 240, 64)[None, :, None] * np.ones((48, 1, 3))
    smooth = smooth.round().astype(np.uint8)
    sheared = apply("ShearX", 0.25 / 0.3, sign, smooth).astype(float)
    for row in (4, 20, 40):
        by = sign * 0.25 * (row + 0.5) * 240 / 63
        middle = np.s_[16:48]
        np.testing.assert_allclose(sheared[row, middle], smooth[row, middle] + by, atol=1.6)
    # Turned to the left by 30 degrees: (x, y) from the center shows what was at x cos - y sin.
    turned = apply("Rotate", 1.0, sign, smooth)
    assert tuple(turned[0, 0]) == Strength(0).fill
    y, x = np.mgrid[16:32, 22:42] + 0.5 - np.array([24, 32])[:, None, None]
    angle = np.deg2rad(30 * sign)
    at = x * np.cos(angle) - y * np.sin(angle) + 31.5
    np.testing.assert_allclose(turned[16:32, 22:42, 0], at * 240 / 63, atol=2)
    down = smooth.transpose(1, 0, 2)
    np.testing.assert_allclose(
        apply("ShearY", 0.25 / 0.3, sign, down)[16:48].astype(float),
        sheared.transpose(1, 0, 2)[16:48],
        atol=1,
    )


def test_fifteen_operations_are_drawn_alike_and_half_of_the_layers_apply():
    draws = np.random.default_rng(0).uniform(size=(20_000, rand_augment.RAND_DRAWS))
    chosen = [layer for row in draws for layer in rand_augment.choose(row, magnitude=9, std=0.5)]
    assert len(chosen) / 40_000 == pytest.approx(0.5, abs=0.01)
    names, counts = np.unique([name for name, _ in chosen], return_counts=True)
    assert sorted(names) == sorted(rand_augment.OPERATIONS) and len(names) == 15
    np.testing.assert_allclose(counts / len(chosen), 1 / 15, atol=0.005)
    levels = np.array([how.level for _, how in chosen])
    # Normal about 9 with deviation 0.5, clipped at 10 (2.3 % of the draws).
    assert levels.max() == 1.0 and (levels == 1.0).mean() == pytest.approx(0.0228, abs=0.004)
    assert np.median(levels) == pytest.approx(0.9, abs=0.002)
    assert np.quantile(levels, 0.1587) == pytest.approx(0.85, abs=0.003)
    assert np.mean([how.sign for _, how in chosen]) == pytest.approx(0, abs=0.02)


def test_extreme_draws_are_harmless():
    for value in (0.0, np.nextafter(1.0, 0)):
        draws = np.full(rand_augment.RAND_DRAWS, value)
        assert rand_augment.rand_augment(IMAGE, draws, magnitude=9, std=0.5).shape == IMAGE.shape
        draws = np.array([value, 0, value, value] * 2)
        assert rand_augment.rand_augment(IMAGE, draws, magnitude=9, std=0.5).dtype == np.uint8


def test_jitter_applies_three_factors_in_every_order():
    draws = np.array([0.0, 0.25, 0.5, 1.0])
    out = rand_augment.color_jitter(IMAGE, draws, strength=0.4)
    image = Image.fromarray(IMAGE)
    for kind, factor in (
        (ImageEnhance.Brightness, 0.8),
        (ImageEnhance.Contrast, 1.0),
        (ImageEnhance.Color, 1.4),
    ):
        image = kind(image).enhance(factor)
    np.testing.assert_array_equal(out, np.asarray(image))
    orders = {
        rand_augment.color_jitter(IMAGE, np.array([u, 0.0, 0.9, 1.0]), strength=0.9).tobytes()
        for u in np.arange(6) / 6
    }
    assert len(orders) == 6


def test_the_stream_of_draws_decides_and_nothing_else():
    gray = DataOptions(randaug_magnitude=10.0, randaug_std=0.0, mean=(0.5, 0.5, 0.5))
    which = (list(rand_augment.OPERATIONS).index("Rotate") + 0.5) / 15
    draws = np.array([0.0] * rand_augment.JITTER_DRAWS + [which, 0.0, 0.5, 0.0, 0.0, 0.9, 0.0, 0.0])
    assert tuple(rand_augment.after_crop(gray)(IMAGE, draws)[0, 0]) == (128, 128, 128)
    options = DataOptions(randaug_magnitude=9.0, color_jitter=0.4)
    change = rand_augment.after_crop(options)
    assert rand_augment.after_crop(DataOptions()) is None
    order = TrainSampler(50, seed=3)
    plan = order.plan(0, batch_size=8, rows=slice(0, 8), num_draws=rand_augment.NUM_DRAWS)
    first = [change(IMAGE, row).tobytes() for row in plan.draws]
    assert first == [change(IMAGE, row).tobytes() for row in plan.draws]
    assert len(set(first)) == 8
