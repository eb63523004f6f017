"""PCA targets: correct coefficients, and the same components for a whole run."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import convert, inference
from mae_jax.checkpoint import reader
from mae_jax.convert import surgery
from mae_jax.distributed import sharding
from mae_jax.models.targets import PatchSpec, pca
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import fit_pca
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools import convert as convert_tool
from mae_jax.tools import inspect
from mae_jax.train import loop
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs

N = 6
PCA = {"target__kind": "pca", "target__components": N, "target__fit_images": 40}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SPEC = PatchSpec((8, 12), (4, 4), 3, MEAN, STD)


def pca_config(**changes):
    return tiny_configs.config(**PCA | changes)


def run(workdir, config, **options):
    workdir = str(workdir)
    return loop.run(Pretrain(config, workdir), config, workdir, **options)


def saved(workdir):
    return reader.load_arrays(str(workdir), ("params", "opt_state", "model_state"))


def target_arrays(workdir):
    return saved(workdir)["model_state"]["target"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with a PCA."""
    folder = tmp_path_factory.mktemp("run") / "pca"
    assert run(folder, pca_config(steps=30, eval_every=30, optim__base_lr=0.1))
    return folder


def cut(images):
    """Normalized patches [B, L, P] of uint8 images, in loops."""
    ph, pw = SPEC.patch_size
    x = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    rows, columns = x.shape[1] // ph, x.shape[2] // pw
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    return np.stack(
        [x[:, r * ph :, c * pw :][:, :ph, :pw].reshape(len(x), -1) for r, c in cells], axis=1
    )


@pytest.fixture(scope="module")
def fitted():
    """Images with structure, their patches, and their PCA fitted in three batches."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(30, 2, 3, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.clip(128 + 40 * smooth + 9 * rng.normal(size=(30, 8, 12, 3)), 0, 255)
    images = images.astype(np.uint8)
    patches = cut(images)
    parts = np.split(patches.reshape(-1, 48).astype(np.float32), [50, 51])
    return images, patches, pca.fit(parts, 48, N)


def test_directions_and_variance_are_those_of_the_singular_values(fitted):
    _, patches, fit = fitted
    flat = patches.reshape(-1, 48)
    assert fit.patches == len(flat) == 180
    np.testing.assert_allclose(fit.mean, flat.mean(axis=0), atol=1e-6)
    _, singular, directions = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(fit.variance, singular**2 / len(flat), rtol=1e-4)
    for ours, theirs in zip(fit.components, directions, strict=False):
        sign = np.sign(theirs[np.abs(theirs).argmax()])
        np.testing.assert_allclose(ours, sign * theirs, atol=1e-4)
        assert ours[np.abs(ours).argmax()] > 0
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(N), atol=1e-6)


def test_what_is_lost_is_the_variance_of_the_directions_left_out(fitted):
    images, patches, fit = fitted
    arrays = {"mean": fit.mean, "components": fit.components}
    target = pca.PcaTarget(SPEC, N, arrays)
    ids = jnp.broadcast_to(jnp.arange(6), (30, 6))
    values = target.targets(arrays, jnp.asarray(images), ids)
    expected = (patches - fit.mean) @ fit.components.T
    np.testing.assert_allclose(values, expected, atol=1e-5)
    back = np.asarray(target.to_pixels(arrays, values, jnp.asarray(images)))
    lost = ((back - patches) ** 2).sum(axis=-1).mean()
    np.testing.assert_allclose(lost, fit.variance[N:].sum(), rtol=1e-4)
    baseline = float(target.baseline_loss(values, jnp.ones(len(values))).mean())
    np.testing.assert_allclose(baseline, fit.variance[:N].mean(), rtol=1e-4)
    np.testing.assert_allclose(target.loss(jnp.zeros_like(values), values).mean(), baseline)
    pred = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
    by_hand = [((pred[i] - expected[i]) ** 2).mean() for i in range(30)]
    np.testing.assert_allclose(target.loss(jnp.asarray(pred), values), by_hand, rtol=1e-5)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4, 5], [4, 1], [3]])
def test_coefficients_of_any_patches_are_exact_up_to_rounding(fitted, chosen):
    images, _, fit = fitted
    images, ids = jnp.asarray(images), jnp.broadcast_to(jnp.array(chosen), (30, len(chosen)))
    whole = SPEC.patches(images, jnp.broadcast_to(jnp.arange(6), (30, 6)))
    patches = np.asarray(SPEC.patches(images, ids))
    np.testing.assert_array_equal(patches, whole[:, chosen])
    arrays = {"mean": fit.mean, "components": fit.components}
    values = np.asarray(pca.PcaTarget(SPEC, N, arrays).targets(arrays, images, ids))
    centered, rows = (patches - fit.mean).astype(np.float64), fit.components.astype(np.float64)
    # The float32 error bound for any order of summation: XLA's varies with shape and CPU.
    terms, unit = SPEC.patch_dim, np.finfo(np.float32).eps / 2
    bound = terms * unit / (1 - terms * unit) * (np.abs(centered) @ np.abs(rows).T)
    assert (np.abs(values - centered @ rows.T) <= bound).all()


def test_arrays_of_another_shape_are_no_target_of_this_spec():
    good = pca.placeholders(SPEC, N)
    for bad in ({}, good | {"mean": np.zeros(47)}, good | {"more": np.zeros(1)}):
        with pytest.raises(ValueError, match="a PCA target of .* has arrays"):
            pca.PcaTarget(SPEC, N, bad)


def test_neither_seed_nor_mesh_nor_where_data_lie_change_it(tmp_path):
    found = []
    for name, changes in {"a": {}, "b": {"seed": 5, "mesh__fsdp": 4, "batch_size": 32}}.items():
        task = Pretrain(pca_config(**changes), str(tmp_path / name))
        assert not (tmp_path / name / "pca.npz").exists()  # not before it is needed
        found.append(task.initial_model_state())
    found.append(
        Pretrain(pca_config(), "").initial_model_state()
    )  # without a workdir, as in benchmarks
    for other in found[1:]:
        assert other.keys() == {"target/mean", "target/components"}
        for name, x in found[0].items():
            np.testing.assert_array_equal(x, other[name])
    # Independently, from the images.
    task = Pretrain(pca_config(), "")
    batch = next(iter(task.data.replicated_batches(task.data.train_source, 40, 40)))
    assert batch["index"].tolist() == [i * 96 // 40 for i in range(40)]
    x = (batch["image"] / 255.0 - 0.5) / 0.25
    flat = x.reshape(40, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48)
    np.testing.assert_allclose(found[0]["target/mean"], flat.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_one_device_and_four_have_the_same_loss(tmp_path, loss_on):
    values = []
    base = {"model__patch_size": (8, 8), "model__decoder_embed_dim": 64, "target__components": 150}
    for devices, fsdp in ((1, 1), (4, 4)):
        config = pca_config(**base, target__loss_on=loss_on, mesh__fsdp=fsdp)
        task = Pretrain(config, str(tmp_path))
        mesh = sharding.make_mesh(**config.mesh, devices=jax.devices()[:devices])
        abstract = abstract_state(task, mesh)
        components = abstract.model_state["target"]["components"]
        assert components.shape == (150, 192)
        assert components.sharding.is_fully_replicated == (fsdp == 1)
        state = create_state(task, abstract)
        step = make_train_step(task, abstract, mesh, seed=0, grad_accum=1)
        batches = task.train_batches(0)
        state, found = step(state, sharding.to_device(mesh, next(batches)))
        batches.close()
        values.append(jax.device_get(found))
    one, four = values
    for key in ("loss", "baseline_loss", "grad_norm"):
        assert np.isfinite(one[key]) and one["skipped"] == 0
        np.testing.assert_allclose(four[key], one[key], rtol=5e-6)


def test_loss_falls_and_the_components_are_recorded(trained):
    lines = tiny_configs.metric_lines(trained, "eval")
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[0]["loss"] > 0.9 * lines[0]["baseline_loss"]  # untrained
    with np.load(trained / "pca.npz") as file:
        assert file["variance"].shape == (48,)
        for name, x in target_arrays(trained).items():
            np.testing.assert_array_equal(x, file[name])
    assert reader.load_metadata(str(trained))["target"] == {"kind": "pca", "components": N}


def test_a_resumed_run_uses_the_arrays_of_its_checkpoint(tmp_path, monkeypatch):
    config = pca_config(eval_every=20)
    assert run(tmp_path / "whole", config)
    assert not run(tmp_path / "parts", config, **tiny_configs.stop_in_step(7))
    before = target_arrays(tmp_path / "parts")
    os.remove(tmp_path / "parts" / "pca.npz")
    monkeypatch.setattr(fit_pca, "fit", lambda *_: 1 / 0)
    assert run(tmp_path / "parts", config)
    resumed = pca_config(eval_every=20, resume=str(tmp_path / "parts" / "checkpoints" / "7"))
    assert run(tmp_path / "elsewhere", resumed)
    whole = saved(tmp_path / "whole")
    for name in ("parts", "elsewhere"):
        for split in ("train", "eval"):
            lines = tiny_configs.metric_lines(tmp_path / "whole", split)
            assert tiny_configs.metric_lines(tmp_path / name, split)[-1] == lines[-1]
        other = saved(tmp_path / name)
        for x, y in zip(*map(jax.tree.leaves, (whole, other)), strict=True):
            np.testing.assert_array_equal(x, y)
    for x, y in zip(*map(jax.tree.leaves, (before, whole["model_state"]["target"])), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_an_earlier_start_left_is_used_again_or_refused(tmp_path, monkeypatch):
    first = Pretrain(pca_config(), str(tmp_path)).initial_model_state()
    monkeypatch.setattr(pca, "fit", lambda *_: 1 / 0)
    for name, x in Pretrain(pca_config(seed=3), str(tmp_path)).initial_model_state().items():
        np.testing.assert_array_equal(x, first[name])
    for changes, text in (
        ({"target__components": 7}, "components: 6 -> 7"),
        ({"model__patch_size": (8, 8)}, r"patch_size: \[4, 4\] -> \[8, 8\]"),
        ({"data__num_train": 97}, "source: .*'count': 96.* -> .*'count': 97"),
        ({"data__std": (0.5, 0.5, 0.5)}, "pixels: "),
    ):
        with pytest.raises(UsageError, match=rf"pca.npz is the PCA of other data .*{text}"):
            Pretrain(pca_config(**changes), str(tmp_path)).initial_model_state()
    (tmp_path / "pca.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"pca.npz cannot be read .* remove the file"):
        Pretrain(pca_config(), str(tmp_path)).initial_model_state()


def test_other_data_in_the_same_workdir_are_refused(trained):
    with pytest.raises(UsageError, match=r"data.num_train: 96 -> 97"):
        run(trained, pca_config(steps=40, optim__base_lr=0.1, data__num_train=97))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target__components": 49}, "components=49 is more than the 48 values of a patch of 4x4"),
        ({"target__normalize": True}, "set --config.target.normalize=False"),
    ],
)
def test_what_cannot_work_is_refused_at_once(changes, message):
    with pytest.raises(UsageError, match=message):
        Pretrain(pca_config(**changes), "")


def test_too_few_patches_are_refused():
    config = pca_config(target__components=48, target__fit_images=3)
    with pytest.raises(UsageError, match="components=48 need more patches than the 48 of 3 images"):
        Pretrain(config, "").initial_model_state()


def test_figures_and_reconstructions_are_projections_onto_the_components(trained):
    model = inference.load(str(trained))
    images = Pretrain(pca_config(), "").data.first_held_out(3)["image"]
    views = model.reconstruct(images)
    assert "6 of 48 components" in model.target.caption
    # Predicted patches lie in the plane of the components.
    arrays = target_arrays(trained)
    x = (np.asarray(views.predicted) - 0.5) / 0.25
    flat = x.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48) - arrays["mean"]
    inside = flat @ arrays["components"].T @ arrays["components"]
    np.testing.assert_allclose(flat, inside, atol=1e-4)
    assert np.abs(flat).max() > 0.1
    x = (np.asarray(views.original) - 0.5) / 0.25
    flat = x.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48) - arrays["mean"]
    projected = flat @ arrays["components"].T @ arrays["components"] + arrays["mean"]
    x = (np.asarray(views.target) - 0.5) / 0.25
    shown = x.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48)
    np.testing.assert_allclose(shown, projected, atol=1e-4)
    assert model.features(images).shape == (3, 24)
    task = Pretrain(pca_config(), "")
    mesh = sharding.make_mesh(**pca_config().mesh)
    state = create_state(task, abstract_state(task, mesh))
    figure = task.figure(state, mesh)
    assert figure.dtype == np.uint8
    assert figure.shape[1] == 4 * 100 + 4  # original, masked, predicted, target


def test_the_tools_know_it(trained, tmp_path, capsys):
    info = inspect.describe(str(trained))
    assert info["metadata"]["target"] == {"kind": "pca", "components": N}
    assert info["arrays"]["target/components"]["shape"] == [N, 48]
    images = Pretrain(pca_config(), "").data.first_held_out(2)["image"]
    expected = inference.load(str(trained)).reconstruct(images)
    for name in ("folder", "file.npz"):
        out = str(tmp_path / name)
        assert convert_tool.main(["--from", str(trained), "--to", out]) == 0
        assert "target 6 PCA coefficients" in capsys.readouterr().out
        for x, y in zip(inference.load(out).reconstruct(images), expected, strict=True):
            np.testing.assert_array_equal(x, y)
    for name in ("file.safetensors", "hf"):
        with pytest.raises(UsageError, match="does not support a target of 6 PCA coefficients"):
            convert.save(convert.load(str(trained)), str(tmp_path / name),
                         format="hf" if name == "hf" else "")  # fmt: skip
        assert not os.path.exists(tmp_path / name)
    for name in ("encoder.safetensors", "encoder.npz", "encoder"):
        out = str(tmp_path / name)
        assert convert_tool.main(["--from", str(trained), "--to", out, "--encoder_only"]) == 0
        again = convert.load(out)
        assert again.kind == "vit" and not again.target
    for format in ("timm", "hf_vit"):
        convert.save(convert.load(str(trained)), str(tmp_path / format), format=format)
    with pytest.raises(UsageError, match="only the encoder can be adapted"):
        surgery.with_channels(convert.load(str(trained)), 1, "mean")


def test_weights_without_their_target_are_refused(trained, tmp_path):
    out = str(tmp_path / "file.npz")
    convert.save(convert.load(str(trained)), out)
    with np.load(out) as file:
        arrays = dict(file)
    for text, changed in (
        ("a PCA target of", {k: x for k, x in arrays.items() if k != "target/mean"}),
        ("a PCA target of", arrays | {"target/components": np.zeros((7, 48), np.float32)}),
        ("16 numbers", arrays | {"mae_jax": _with(arrays, "pred_dim", 16)}),
        ("pred_dim is -1", arrays | {"mae_jax": _with(arrays, "pred_dim", -1)}),
        ("pred_dim is '6'", arrays | {"mae_jax": _with(arrays, "pred_dim", "6")}),
    ):
        path = str(tmp_path / "changed.npz")
        np.savez(path, allow_pickle=False, **changed)
        with pytest.raises(UsageError, match=text):
            convert.load(path)


def _with(arrays, key, value):
    metadata = json.loads(str(arrays["mae_jax"]))
    metadata["model"][key] = value
    return np.array(json.dumps(metadata))


def test_other_runs_start_from_its_encoder(trained, tmp_path):
    for channels, name in ((3, "same"), (1, "gray")):
        pixels = {"data__mean": (0.5,) * channels, "data__std": (0.25,) * channels}
        config = tiny_configs.classify_config(
            init_from=str(trained), steps=1, init_channels="mean", model__channels=channels,
            mix__group=4, **pixels,
        )  # fmt: skip
        folder = str(tmp_path / name)
        assert loop.run(Classify(config, folder), config, folder)
    # Pre-training continues with another target: its last layer is reinitialized.
    for name, config in {
        "pixel": tiny_configs.config(),
        "pca": pca_config(target__components=5),
    }.items():
        config.init_from, config.steps = str(trained), 1
        assert run(tmp_path / name, config)
        report = (tmp_path / name / "init_from.json").read_text()
        assert report.count("decoder_pred/kernel") == 2  # reinitialized, and unused
