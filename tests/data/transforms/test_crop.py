"""Crops follow torchvision's rule and pixels follow Pillow's."""

import math

import numpy as np
import pytest
from PIL import Image

from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import TrainSampler
from mae_jax.data.transforms import crop
from mae_jax.data.transforms import resize as resize_module
from mae_jax.data.transforms.resize import resize
from tests.data.helpers import picture

NO_DRAWS = np.empty(0)
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def assert_close(ours, theirs, *, mean, most):
    difference = np.abs(np.asarray(ours, np.int32) - np.asarray(theirs, np.int32))
    assert difference.mean() <= mean
    assert difference.max() <= most


def plain_box(height, width, draws, scale, ratio):
    """torchvision's rule, one try after the other."""
    tries = crop.TRIES
    for k in range(tries):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[k])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * draws[tries + k])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(draws[2 * tries] * (height - h + 1))
            return top, math.floor(draws[2 * tries + 1] * (width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def boxes(height, width, count, scale=SCALE, ratio=RATIO, rule=crop.random_box):
    plan = TrainSampler(count, seed=0).plan(
        0, batch_size=count, rows=slice(0, count), num_draws=crop.NUM_DRAWS
    )
    found = [rule(height, width, row, scale=scale, ratio=ratio) for row in plan.draws.tolist()]
    return np.array(found), plan.draws


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(375, 500, SCALE), (300, 37, SCALE), (20, 300, SCALE), (64, 64, (1.0, 1.0)), (1, 1, SCALE)],
)
def test_boxes_are_those_of_the_plain_rule(height, width, scale):
    ours, draws = boxes(height, width, 300, scale=scale)
    plain = [plain_box(height, width, row, scale, RATIO) for row in draws]
    assert ours.tolist() == [list(box) for box in plain]


def test_box_statistics_are_torchvisions():
    ours, _ = boxes(375, 500, 8000)
    top, left, h, w = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= 375).all() and (left + w <= 500).all()
    # torchvision: 0.494 (TensorFlow's own op: 0.459); standard error here is 0.002.
    assert abs((h * w / (375 * 500)).mean() - 0.494) < 0.008
    assert (w / h).min() > 3 / 4 - 0.02 and (w / h).max() < 4 / 3 + 0.02
    room = top[h < 300] / (375 - h[h < 300])
    assert abs(room.mean() - 0.5) < 0.02


def test_crops_are_resized_as_pillow_does(parity):
    cases = [key for key in parity if key.startswith("rrc/")]
    assert len(cases) == 14
    for key in cases:
        _, photo, box, size = key.split("/")
        top, left, h, w = map(int, box.split("_"))
        crop = parity[f"photo/{photo}"][top : top + h, left : left + w]
        ours = resize(crop, (int(size), int(size)))
        assert_close(ours, parity[key], mean=0.3, most=8)


def test_evaluation_transform_is_mae_s(parity):
    transform = crop.view_transform(DataOptions(), image_size=(224, 224), train=False)
    for photo in ("astronaut", "chelsea"):
        ours = transform(parity[f"photo/{photo}"], NO_DRAWS)
        np.testing.assert_array_equal(ours, parity[f"eval/{photo}/u8"])


@pytest.mark.parametrize(
    ("image", "target", "expected"),
    [
        ((400, 600), (224, 224), (256, 384)),
        ((600, 400), (224, 224), (384, 256)),
        ((301, 451), (32, 32), (36, 53)),  # int(32 / 0.875) = 36
        ((400, 600), (384, 384), (384, 576)),  # above 224 the crop ratio is 1
        ((10, 10), (224, 224), (256, 256)),
        ((400, 600), (224, 448), (341, 512)),  # the width limits
        ((400, 600), (224, 112), (256, 384)),  # the height limits
    ],
)
def test_evaluation_size(image, target, expected):
    assert crop.eval_size(*image, target) == expected


@pytest.mark.parametrize("rule", crop.BOXES.values())
@pytest.mark.parametrize("ratio", [RATIO, (3.0, 4.0), (0.25, 1 / 3)])  # the last two rarely fit
def test_a_box_is_never_empty_and_never_leaves_the_image(rule, ratio):
    for height, width in ((7, 5), (1, 1), (1, 900), (900, 1), (2, 3), (20, 300)):
        for top, left, h, w in boxes(height, width, 100, ratio=ratio, rule=rule)[0]:
            assert 0 <= top <= top + h - 1 < height and 0 <= left <= left + w - 1 < width
            assert h > 0 and w > 0


@pytest.mark.parametrize("height, width", [(30, 200), (200, 30), (64, 64)])
def test_one_draw_is_cut_to_the_image(height, width):
    got, draws = boxes(height, width, 500, scale=(0.08, 1.0), rule=crop.random_box_once)
    tries = crop.TRIES
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for box, u in zip(got, draws, strict=True):
        area = height * width * (0.08 + 0.92 * u[0])
        aspect = math.exp(low + (high - low) * u[tries])
        w = min(round(math.sqrt(area * aspect)), width)
        h = min(round(math.sqrt(area / aspect)), height)
        top, left = (
            int(v * room)
            for v, room in zip(u[2 * tries :], (height - h + 1, width - w + 1), strict=False)
        )
        assert tuple(box) == (top, left, h, w)


@pytest.mark.parametrize("target", [(224, 112), (64, 160), (32, 32)])
def test_evaluation_equals_pillow_resize_and_center_crop(target):
    image = picture(3, 181, 240)
    ours = crop.view_transform(DataOptions(), image_size=target, train=False)(image, NO_DRAWS)
    h, w = crop.eval_size(181, 240, target)
    whole = Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC)
    top, left = round((h - target[0]) / 2), round((w - target[1]) / 2)
    theirs = np.asarray(whole)[top : top + target[0], left : left + target[1]]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("resizer", "augment", "train", "exact"),
    [
        ("auto", "crop", False, True),
        ("auto", "crop", True, False),
        ("auto", "none", True, True),
        ("pillow", "crop", True, True),
        ("fast", "crop", False, False),
    ],
)
def test_the_resizer_is_chosen(resizer, augment, train, exact, monkeypatch):
    monkeypatch.setattr(resize_module, "SIMD", True)
    monkeypatch.setattr(resize_module, "_simd", lambda _, size, __: np.zeros((*size, 3), np.uint8))
    options = DataOptions(resizer=resizer, augment=augment, crop_scale=(1, 1), hflip=False)
    transform = crop.view_transform(options, image_size=(32, 32), train=train)
    assert transform(picture(3), draws_for(1)[0]).any() == exact


def draws_for(count):
    return (
        TrainSampler(count, seed=1)
        .plan(0, batch_size=count, rows=slice(0, count), num_draws=crop.NUM_DRAWS)
        .draws
    )


@pytest.mark.parametrize(
    ("target", "full"),
    [
        ((224, 224), (256, 339)),  # int(256 * 240 / 181)
        ((384, 384), (438, 580)),  # int(384 * 256 / 224): above 224 too, unlike evaluation
        ((32, 32), (36, 47)),
        ((64, 160), (137, 182)),  # the width limits
    ],
)
def test_fixed_crops_are_those_of_the_plain_rule(target, full):
    image = picture(3, 181, 240)
    whole = Image.fromarray(image).resize(full[::-1], Image.Resampling.BICUBIC)
    transform = crop.view_transform(
        DataOptions(augment="crop_fixed"), image_size=target, train=True
    )
    seen = set()
    for draws in draws_for(12):
        top = math.floor(draws[2 * crop.TRIES] * (full[0] - target[0] + 1))
        left = math.floor(draws[2 * crop.TRIES + 1] * (full[1] - target[1] + 1))
        expected = np.asarray(whole)[top : top + target[0], left : left + target[1]]
        if draws[crop.FLIP] < 0.5:
            expected = expected[:, ::-1]
        ours = transform(image, draws)
        assert_close(ours, expected, mean=0.3, most=8)
        np.testing.assert_array_equal(ours, transform(image, draws))
        seen.add((top, left))
    assert len(seen) > 6


def test_fixed_crops_reach_every_place_and_stay_inside():
    options, target = DataOptions(augment="crop_fixed"), (32, 32)
    views = [
        crop.choose_view(60, 45, row, options=options, target=target, train=True)
        for row in draws_for(2000).tolist()
    ]
    tops, lefts = ({view.offset[axis] for view in views} for axis in (0, 1))
    assert {view.full for view in views} == {(48, 36)}
    assert tops == set(range(48 - 32 + 1)) and lefts == set(range(36 - 32 + 1))
    assert 0.45 < np.mean([view.mirror for view in views]) < 0.55
    tiny = crop.choose_view(1, 1, [0.999] * 23, options=options, target=target, train=True)
    assert tiny.full == (36, 36) and tiny.offset == (4, 4)


def test_no_augmentation_is_the_evaluation_view_and_never_mirrored():
    options = DataOptions(augment="none", hflip=True)
    evaluation = crop.choose_view(60, 45, [], options=options, target=(32, 32), train=False)
    for row in draws_for(20).tolist():
        row[crop.FLIP] = 0.0
        view = crop.choose_view(60, 45, row, options=options, target=(32, 32), train=True)
        assert view == evaluation and not view.mirror


def test_flips_half_of_the_images_or_none():
    ramp = np.repeat(np.arange(0, 250, 5, np.uint8)[None, :, None], 50, axis=0).repeat(3, axis=2)
    for hflip, low, high in ((True, 30, 70), (False, 0, 0)):
        transform = crop.view_transform(DataOptions(hflip=hflip), image_size=(8, 8), train=True)
        flipped = 0
        for draws in draws_for(100):
            image = transform(ramp, draws)
            flipped += int(image[0, 0, 0]) > int(image[0, -1, 0])
        assert low <= flipped <= high


def test_float32_keeps_the_units_of_the_file():
    image = np.linspace(-3, 5000, 40 * 40 * 2).reshape(40, 40, 2).astype(np.float32)
    options = DataOptions(dtype="float32")
    for train in (True, False):
        transform = crop.view_transform(options, image_size=(8, 8), train=train)
        out = transform(image, draws_for(1)[0])
        assert out.dtype == np.float32 and out.shape == (8, 8, 2)
        assert out.max() > 1000


def test_without_antialias_pixels_differ():
    crop = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    smooth, rough = (resize(crop, (16, 16), antialias=antialias) for antialias in (True, False))
    assert np.std(rough) > 2 * np.std(smooth)
