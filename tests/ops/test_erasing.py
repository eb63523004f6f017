"""Random erasing: one box of noise of the right size, with the right probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops.erasing import random_erasing


@pytest.fixture(scope="module")
def erased():
    images = jnp.full((4000, 24, 32, 2), 100.0)
    return np.asarray(jax.jit(lambda k: random_erasing(k, images, 0.25))(jax.random.key(0)))


def test_share_of_images_and_of_area(erased):
    boxes = (erased != 100).all(axis=-1)
    np.testing.assert_array_equal(boxes, (erased != 100).any(axis=-1))
    hit = boxes.any(axis=(1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.02)
    for box in boxes[hit]:
        assert np.array_equal(box, np.outer(box.any(1), box.any(0)))
        assert 0.01 < box.mean() < 0.36
    tall, wide = boxes[hit].any(2).sum(1), boxes[hit].any(1).sum(1)
    # timm's rule in plain NumPy, with its own draws.
    rng, areas, aspects = np.random.default_rng(0), [], []
    while len(areas) < 20_000:
        area = rng.uniform(0.02, 1 / 3) * 24 * 32
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if h < 24 and w < 32:
            areas.append(h * w)
            aspects.append(np.log(h / w))
    assert np.mean(tall * wide) == pytest.approx(np.mean(areas), rel=0.05)
    assert np.mean(np.log(tall / wide)) == pytest.approx(np.mean(aspects), abs=0.06)


def test_boxes_reach_every_place_and_noise_is_standard_normal(erased):
    boxes = (erased != 100).all(axis=-1)
    assert boxes.any(axis=0).all()
    noise = erased[erased != 100]
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
