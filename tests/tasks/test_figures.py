"""Reconstructions and figures of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mae_jax.inference import Pretrained
from mae_jax.models.reconstruct import Reconstruction, reconstruct
from mae_jax.models.targets import PatchSpec
from mae_jax.models.targets.hog import HogTarget
from mae_jax.models.targets.pca import PcaTarget
from mae_jax.models.targets.pixel import PixelTarget, pixel_target
from mae_jax.ops import masking
from mae_jax.ops.patches import patchify
from mae_jax.tasks import figures
from mae_jax.tasks.pretrain import Pretrain
from tests.helpers import tiny_configs
from tests.parity import official

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = PatchSpec((32, 32), (4, 4), 3, MEAN, STD)


class Oracle:
    """Predicts the target perfectly, so that what is shown must be the original."""

    patch_size, grid = (4, 4), (8, 8)
    predict = None

    def __init__(self, target):
        self.target = target

    def apply(self, variables, visible, masking, method):
        return self.target


@pytest.mark.parametrize("normalize", [False, True])
def test_a_perfect_prediction_shows_the_original(normalize):
    images = official.arrays("mae_tiny_r75_npl0.npz")["imgs_u8"].copy()
    images[:, 0, 0], images[:, 0, 1] = 0, 255
    pixels = (images / 255 - np.array(MEAN)) / np.array(STD)
    oracle = pixel_target(patchify(jnp.asarray(pixels, jnp.float32), (4, 4)), normalize=normalize)
    masked = masking.from_noise(jax.random.uniform(jax.random.key(0), (4, 64)), 0.75)
    target = PixelTarget(SPEC, normalize=normalize)
    out = reconstruct(Oracle(oracle), {}, jnp.asarray(images), masked, target, {})
    for view in (out.original, out.predicted, out.pasted):
        np.testing.assert_allclose(view, images / 255, atol=1e-4)
    assert images.min() == 0 and images.max() == 255  # where rounding could leave [0, 1]
    original = np.asarray(out.original)
    np.testing.assert_array_equal(figures.to_display(original, original), images)
    gray = (np.abs(np.asarray(out.masked) - 0.5) < 1e-6).all(axis=-1).mean()
    assert gray == pytest.approx(0.75, abs=0.01)


def test_pasted_image_takes_each_patch_from_where_it_should():
    model, params = official.tiny_model(), official.tiny_params()
    images = jnp.asarray(official.arrays("mae_tiny_r75_npl0.npz")["imgs_u8"])
    masked = masking.from_noise(jax.random.uniform(jax.random.key(1), (4, 64)), 0.75)
    out = reconstruct(model, params, images, masked, PixelTarget(SPEC, normalize=False), {})
    hidden = np.repeat(np.repeat(np.asarray(masked.mask).reshape(4, 8, 8), 4, 1), 4, 2)[..., None]
    expected = np.where(hidden == 1, out.predicted, out.original)
    np.testing.assert_allclose(out.pasted, expected, atol=1e-6)
    np.testing.assert_array_equal(out.hidden, hidden == 1)
    assert out.target is None  # it is the image


def pca_target():
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(48, 6)))[0].T
    return PcaTarget(SPEC, 6, {"mean": np.full(48, 0.1), "components": rows.astype(np.float32)})


@pytest.mark.parametrize("target", [HogTarget(SPEC), pca_target()], ids=["hog", "pca"])
def test_the_true_target_is_rendered_like_a_prediction(target):
    images = jnp.asarray(official.arrays("mae_tiny_r75_npl0.npz")["imgs_u8"])
    oracle = Oracle(target.targets(target.arrays, images, SPEC.all_ids(4)))
    masked = masking.from_noise(jax.random.uniform(jax.random.key(0), (4, 64)), 0.75)
    out = reconstruct(oracle, {}, images, masked, target, target.arrays)
    np.testing.assert_allclose(out.target, out.predicted, atol=1e-5)
    assert np.abs(out.target - out.original).max() > 0.1


def test_a_target_unlike_its_prediction_has_no_column():
    class Classes(HogTarget):
        def targets(self, arrays, images, ids):
            return ids

    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert Classes(SPEC).true_pixels({}, jnp.asarray(images)) is None


def views(target=None, width=96):
    """Black images of which the left half is hidden, predicted in white everywhere."""
    image = np.zeros((2, 96, width, 3), np.float32)
    hidden = np.broadcast_to(np.arange(width)[:, None] < width // 2, (2, 96, width, 1))
    return Reconstruction(image, image, image + 1, image + hidden, hidden, target)


def cells(figure, width=96):
    """The images of the first row of a figure."""
    step = width + figures.GAP
    row = figure[figures.TEXT : figures.TEXT + 96]
    return [row[:, left : left + width] for left in range(figures.GAP, figure.shape[1], step)]


def test_visible_patches_are_shown_as_they_are():
    original, masked, reconstruction = cells(figures.reconstruction_grid(views()))
    assert not original.any() and not masked.any()
    assert (reconstruction[:, :48] == 255).all() and not reconstruction[:, 48:].any()
    *same, output = cells(figures.reconstruction_grid(views(), raw=True))
    np.testing.assert_array_equal(same, [original, masked, reconstruction])
    assert (output == 255).all()


def test_other_targets_are_shown_beside_the_prediction():
    gray = np.full((2, 96, 96, 3), 0.4, np.float32)
    _, _, predicted, target = cells(figures.reconstruction_grid(views(gray)))
    assert (target == 102).all()
    assert (predicted[:, :48] == 255).all() and (predicted[:, 48:] == 102).all()
    both = figures.reconstruction_grid({"a": views(gray), "b": views(gray)})
    assert [cell.mean() for cell in cells(both)] == [
        *(0, 0, predicted.mean(), 0, predicted.mean(), 102)
    ]


def test_targets_of_other_units_than_the_image_are_visible():
    values = views(np.full((2, 96, 96, 3), 0.4, np.float32))
    image = values.original + np.float32(1000)
    image[:, 0] = -1000
    _, _, predicted, target = cells(
        figures.reconstruction_grid(values._replace(original=image, masked=image))
    )
    assert (target == 102).all() and (predicted[:, :48] == 255).all()


def test_predictions_are_shown_in_the_range_of_the_image():
    *_, target = cells(figures.reconstruction_grid(views(np.full((2, 96, 96, 3), 2, np.float32))))
    assert (target == 255).all()  # not scaled, because the image is not
    values = views()
    image = values.original.copy()
    image[:, 0], image[:, 1:] = -1000, 1000
    other = values._replace(original=image, masked=image, predicted=image)
    original, _, reconstruction = cells(figures.reconstruction_grid(other))
    assert not original[0].any() and (original[1:] == 255).all()
    np.testing.assert_array_equal(reconstruction, original)


@pytest.mark.parametrize("loss_on, columns", [("masked", 3), ("all", 4)])
def test_training_shows_the_raw_output_if_it_is_trained(monkeypatch, loss_on, columns):
    task = Pretrain(tiny_configs.config(target__loss_on=loss_on), "")
    monkeypatch.setattr(task._figure, "compute", lambda *_: ({}, views()))
    figure = task.figure(SimpleNamespace(params={}, model_state={}), None)
    assert len(cells(figure)) == columns
    weights = SimpleNamespace(metadata={"config": {"target": {"loss_on": loss_on}}})
    assert Pretrained.predicts_visible.fget(weights) == (loss_on == "all")


def test_columns_have_titles(monkeypatch):
    monkeypatch.setattr(figures, "image_grid", lambda columns, _: [title for title, _ in columns])
    black = np.zeros((2, 96, 96, 3), np.float32)
    titles = figures.reconstruction_grid(views(), raw=True)
    assert titles == ["original", "masked", "reconstruction", "raw output"]
    titles = figures.reconstruction_grid({"grid": views(black), "block": views(black)})
    assert titles == ["original", "grid", "predicted", "block", "predicted", "target"]


def test_the_caption_tells_the_mask_and_the_statistics(monkeypatch):
    captions = []
    monkeypatch.setattr(figures, "image_grid", lambda columns, caption: captions.append(caption))
    note = PixelTarget(SPEC, normalize=True).caption
    figures.reconstruction_grid(views(), note, mask_kind="random")
    figures.reconstruction_grid({"random 50 %": views()}, note)
    assert captions == [
        "50 % of the patches are hidden (random). "
        "Normalized pixels: each predicted patch has its true mean and standard deviation",
        "Normalized pixels: each predicted patch has its true mean and standard deviation",
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_channels_and_units_can_be_shown(channels):
    images = np.random.default_rng(0).normal(500, 200, (2, 8, 8, channels))
    out = figures.to_display(images, images)
    assert out.shape == (2, 8, 8, 3) and out.dtype == np.uint8
    assert out.min() == 0 and out.max() == 255


def test_grid_contains_the_images_and_is_written(tmp_path):
    red = np.zeros((2, 50, 40, 3), np.uint8)
    red[..., 0] = 200
    image = figures.image_grid([("one", red), ("two", red[:, :, :, ::-1])], "caption")
    zoom = 3  # 40 pixels enlarged to at least 96
    assert (image == (200, 0, 0)).all(axis=-1).sum() == 2 * 50 * 40 * zoom**2
    assert (image == (0, 0, 200)).all(axis=-1).sum() == 2 * 50 * 40 * zoom**2
    np.testing.assert_array_equal(image[: -figures.TEXT], figures.image_grid(
        [("one", red), ("two", red[:, :, :, ::-1])]))  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 255, (2, 50, 40, 3), np.uint8)
    second = figures.image_grid([("one", noise)])[-(50 * zoom + figures.GAP) :, figures.GAP :]
    np.testing.assert_array_equal(second[: 50 * zoom : zoom, : 40 * zoom : zoom], noise[1])
    path = tmp_path / "new" / "figure.png"
    figures.save_png(str(path), image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)


def test_titles_and_captions_are_never_cut_off():
    image = np.zeros((1, 96, 96, 3), np.uint8)
    text = "a caption that is several times as wide as one narrow image " * 2
    plain, figure = (figures.image_grid([("t", image)], caption) for caption in ("", text))
    assert figure.shape[1] == plain.shape[1]
    below = figure[plain.shape[0] :]
    assert " ".join(figures._wrapped(text, 96)) == text.strip()
    assert len(below) % figures.TEXT == 0 and len(below) > 4 * figures.TEXT
    lines = below.reshape(-1, figures.TEXT, *below.shape[1:])
    assert all((line < 255).any() for line in lines)
    assert (below[:, -figures.GAP :] == 255).all()
    wide = figures.image_grid([("a title much wider than the image below it", image)] * 2)
    assert wide.shape[1] > plain.shape[1] * 2 + 50
    assert (wide[: figures.TEXT, -figures.GAP :] == 255).all()
